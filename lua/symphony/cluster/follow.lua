-- Changes that wait for a reader who may be slow: a watch whose events are kept, up to so many bytes.
local async = require "symphony.async"
local errors = require "symphony.errors"
local store = require "sym.store"

local M = {}
M.__index = M

local ITEM_BYTES = 256 -- what an event takes besides

-- Follows the keys below @prefix from behind @revision on, and keeps at most about @max bytes that have not been taken.
-- @item(event): what is kept of an event, and about how many bytes that takes; nil: nothing. Close it
-- when done (a `<close>` variable does). nil, err.
--   seen      the last revision that has arrived
--   failed    why nothing more will come: the watch has ended, or was given up with "busy" because too much waited;
--             then what waited is gone
--   changed   an event (async) that is set whenever there is something new
function M.open(prefix, revision, max, item)
  local f = setmetatable({ seen = revision, changed = async.event(), max = max, item = item, bytes = 0, queue = {},
    first = 1, last = 0 }, M)
  local err
  f.watch, err = store.watch(prefix, revision, function(status, events) f:add(status, events) end)
  if not f.watch then return nil, err end
  return f
end

-- What the watch tells. It must not go on once this is over: nobody may ever take what it brings.
function M:add(status, events)
  if self.failed then return end
  self.failed = status
  for _, event in ipairs(events or {}) do
    self.seen = math.max(self.seen, event.revision)
    local kept, bytes = self.item(event)
    if kept ~= nil then
      self.last = self.last + 1
      self.queue[self.last] = { kept = kept, bytes = bytes + ITEM_BYTES, revision = event.revision }
      self.bytes = self.bytes + bytes + ITEM_BYTES
    end
  end
  if self.bytes > self.max then
    self.failed = errors.new("busy", "the reader is too slow for what changes")
    self.queue, self.first, self.last, self.bytes = {}, 1, 0, 0
    self:close()
  end
  self.changed:set()
end

-- The next of what waits and its revision, unless that is higher than @upto; nil: there is none now.
function M:pop(upto)
  local entry = self.queue[self.first]
  if not entry or (upto and entry.revision > upto) then return nil end
  self.queue[self.first] = nil
  self.first = self.first + 1
  self.bytes = self.bytes - entry.bytes
  return entry.kept, entry.revision
end

-- Nothing more comes; what waits can still be taken.
function M:close()
  self.watch:close()
end

M.__close = M.close

return M
