-- A token bucket for each address, an IPv6 /64 being one, or for each of other names, in bounded memory. Pure but for
-- its own table.
local cidr = require "symphony.cluster.cidr"

local M = {}
M.__index = M

-- @burst at once, then one every @every seconds; at most @max addresses are remembered.
function M.new(burst, every, max)
  return setmetatable({ burst = burst, every = every, max = max, count = 0, buckets = {} }, M)
end

local function left(self, bucket, now)
  return math.min(self.burst, bucket.left + (now - bucket.at) / self.every)
end

-- Drops the buckets that are full again; all of them if that makes no room.
local function shrink(self, now)
  for addr, bucket in pairs(self.buckets) do
    if left(self, bucket, now) >= self.burst then
      self.buckets[addr] = nil
      self.count = self.count - 1
    end
  end
  if self.count >= self.max then self.buckets, self.count = {}, 0 end
end

local function find(self, addr, now)
  addr = cidr.group(addr)
  local bucket = self.buckets[addr]
  if not bucket then
    if self.count >= self.max then shrink(self, now) end
    bucket = { left = self.burst, at = now }
    self.buckets[addr] = bucket
    self.count = self.count + 1
  end
  bucket.left, bucket.at = left(self, bucket, now), now
  return bucket
end

-- May @addr do it once more at @now (seconds, any origin)? Then it has done it.
function M:allow(addr, now)
  local bucket = find(self, addr, now)
  if bucket.left < 1 then return false end
  bucket.left = bucket.left - 1
  return true
end

-- The same in two steps, for what is known only afterwards, if it counts at all: may it, and it has. Who has done it
-- more often than it might, many at once, waits for longer, but no more than twice as long.
function M:may(addr, now)
  local bucket = self.buckets[cidr.group(addr)]
  return not bucket or left(self, bucket, now) >= 1
end

function M:done(addr, now)
  local bucket = find(self, addr, now)
  bucket.left = math.max(-self.burst, bucket.left - 1)
end

return M
