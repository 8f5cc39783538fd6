-- How many events of a kind one node may cause: a thousand are kept for all, and one that moves about every few seconds
-- would be all that there is to read. What is left out is counted, and told with the next one. In bounded memory; pure
-- but for its own tables.
local limiter = require "symphony.cluster.limiter"

local M = {}
M.__index = M

-- @burst at once, then one every @every seconds; at most @max nodes and kinds are remembered.
function M.new(burst, every, max)
  return setmetatable({ limit = limiter.new(burst, every, max), max = max, left_out = {}, count = 0 }, M)
end

-- One more event of @kind about node @id at @now (seconds, any origin). When it may be told: how many before it were
-- left out; else nil.
function M:take(id, kind, now)
  local name = kind .. " " .. id
  local before = self.left_out[name]
  if self.limit:allow(name, now) then
    if before then self.left_out[name], self.count = nil, self.count - 1 end
    return before or 0
  end
  if not before then
    if self.count >= self.max then self.left_out, self.count = {}, 0 end
    self.count = self.count + 1
  end
  self.left_out[name] = (before or 0) + 1
  return nil
end

return M
