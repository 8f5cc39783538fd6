-- A token bucket for each address, in bounded memory. Pure but for its own table.
local M = {}
M.__index = M

-- @burst at once, then one every @every seconds; at most @max addresses are remembered.
function M.new(burst, every, max)
  return setmetatable({ burst = burst, every = every, max = max, count = 0, buckets = {} }, M)
end

-- Drops the buckets that are full again; all of them if that makes no room.
local function shrink(self, now)
  local full = self.burst * self.every
  for addr, bucket in pairs(self.buckets) do
    if now - bucket.at >= full then
      self.buckets[addr] = nil
      self.count = self.count - 1
    end
  end
  if self.count >= self.max then self.buckets, self.count = {}, 0 end
end

-- May @addr do it once more at @now (seconds, any origin)?
function M:allow(addr, now)
  local bucket = self.buckets[addr]
  if not bucket then
    if self.count >= self.max then shrink(self, now) end
    bucket = { left = self.burst, at = now }
    self.buckets[addr] = bucket
    self.count = self.count + 1
  end
  bucket.left = math.min(self.burst, bucket.left + (now - bucket.at) / self.every)
  bucket.at = now
  if bucket.left < 1 then return false end
  bucket.left = bucket.left - 1
  return true
end

return M
