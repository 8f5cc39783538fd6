-- One change of identity at a time: init, join, leave, recover.
local errors = require "symphony.errors"

local M = {}

local Lock = {}
Lock.__index = Lock
local holder -- the lock that is held

local function release(lock)
  if holder == lock then holder = nil end
end
Lock.__close = release

-- A lock to be kept in a to-be-closed variable; nil, err ("busy"). @way_out: how a person ends what takes it, until it
-- is handed over.
function M.take(what, way_out)
  if holder then
    return nil, errors.new("busy", ("`%s` is under way on this daemon"):format(holder.what),
      "wait until it has ended" .. (holder.way_out and ", or " .. holder.way_out or ""))
  end
  holder = setmetatable({ what = what, way_out = way_out }, Lock)
  return holder
end

-- Hands a held lock over: the old variable's end does not release it any more, the new one's does.
function Lock:hand_over()
  local heir = setmetatable({ what = self.what }, Lock)
  if holder == self then holder = heir end
  return heir
end

return M
