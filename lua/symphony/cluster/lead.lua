--- Work that never ends, most of it the leader's alone: loops that take one look, and at most one step, at a time.
local async = require "symphony.async"
local errors = require "symphony.errors"
local log = require "sym.log"
local node = require "sym.node"
local raft = require "sym.raft"

local M = {}

local Loop = {}
Loop.__index = Loop

--- raft.status() while this manager leads; nil.
function M.status()
  local status = node.started() and raft.status()
  return status and status.state == "leader" and status or nil
end

--- A loop that calls @turn(), which returns the milliseconds until the next time (0: as soon as others have had their
--- turn), or raises: that is written to the log as of @name, the same only once in a row, and it is called again after
--- @retry_ms. Whether this manager leads it has to ask itself. opts.level: of complaints ("error"); opts.first_ms:
--- until the first look (retry_ms; 0: at once).
function M.loop(name, retry_ms, turn, opts)
  opts = opts or {}
  return setmetatable({ name = name, retry_ms = retry_ms, first_ms = opts.first_ms or retry_ms, turn = turn,
    level = opts.level or "error", wakeup = async.event() }, Loop)
end

local function complain(self, err)
  local text = err.traceback or err.message
  if err.code ~= "canceled" and text ~= self.said then log[self.level](self.name .. ": " .. text) end
  self.said = text
end

local function run(self)
  if self.first_ms > 0 then self.wakeup:wait(self.first_ms) end
  while true do
    self.wakeup = async.event() -- what was heard until now is what this turn looks at
    local ok, result = xpcall(self.turn, errors.handler)
    if ok then self.said = nil else complain(self, result) end
    local delay = ok and result or self.retry_ms
    if delay > 0 then self.wakeup:wait(delay) else async.sleep(0) end
  end
end

--- There may be something to do.
function Loop:wake()
  self.wakeup:set()
end

--- Runs until stop(); said twice, it is one.
function Loop:start()
  self.task = self.task or async.spawn(run, self)
end

function Loop:stop()
  if self.task then self.task:cancel() end
  self.task = nil
end

return M
