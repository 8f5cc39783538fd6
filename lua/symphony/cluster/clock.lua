-- Can this machine's wall clock be believed, for what cannot be undone? Who forgets what has expired by a clock that
-- runs a day ahead takes what others need. It is believed while it goes as fast as the clock that is never set, and
-- some time after it was set, or after this daemon was started: one that is wrong by much is set right before long.
local log = require "sym.log"
local sys = require "sym.sys"

local M = {}
M.__index = M

M.JUMP_S = 60     -- apart by more than this, between two looks, it was set
M.GRACE_S = 3600

-- One that has not seen the clocks yet; pure.
function M.new()
  return setmetatable({}, M)
end

-- The clocks now: @wall and @mono, in seconds. Returns by how many seconds the wall clock was set, if it was.
function M:look(wall, mono)
  local jump = self.base and wall - mono - self.base
  if jump and math.abs(jump) <= M.JUMP_S then return nil end
  self.base, self.since = wall - mono, mono
  return jump
end

-- Is the wall clock to be believed at @mono?
function M:believed(mono)
  return self.since ~= nil and mono - self.since >= M.GRACE_S
end

local own = M.new()

-- Looks at this machine's clocks; often, for what it is asked by trusted() to be worth something.
function M.watch()
  local jump = own:look(sys.now(), sys.mono_ms() / 1000)
  if jump then
    log.warn(("the clock of this machine was set %s by %.0f s: what has expired is forgotten an hour from now at the "
      .. "earliest"):format(jump > 0 and "forward" or "back", math.abs(jump)))
  end
end

-- Is this machine's wall clock to be believed now?
function M.trusted()
  M.watch()
  return own:believed(sys.mono_ms() / 1000)
end

-- As if this daemon had just been started (tests).
function M.reset()
  own = M.new()
end

return M
