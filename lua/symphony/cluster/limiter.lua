-- A token bucket for each address, an IPv6 /64 being one, or for each of other names, in bounded memory. Pure but for
-- its own table.
--
-- What is kept of a bucket is one number: when it is full again. How much is in it follows from that, as in the generic
-- cell rate algorithm of ATM (ITU-T I.371): with thousands of names a table for each would be most of the memory.
local cidr = require "symphony.cluster.cidr"

local ROUNDING = 1e-3 -- of one, which comes that much too early

local M = {}
M.__index = M

-- @burst at once, then one every @every seconds; at most @max addresses are remembered.
function M.new(burst, every, max)
  return setmetatable({ burst = burst, every = every, max = max, count = 0, buckets = {} }, M)
end

-- How long until a bucket that is full at @full is.
local function lacks(full, now)
  return full and full > now and full - now or 0
end

-- Is there one more in a bucket that is full at @full? A burst adds up as many roundings: the last of it must not fail
-- for them.
local function has_one(self, full, now)
  return lacks(full, now) <= (self.burst - 1 + ROUNDING) * self.every
end

-- Drops the buckets that are full again; all of them if that makes no room.
local function shrink(self, now)
  for addr, full in pairs(self.buckets) do
    if full <= now then
      self.buckets[addr] = nil
      self.count = self.count - 1
    end
  end
  if self.count >= self.max then self.buckets, self.count = {}, 0 end
end

-- Takes one out of the bucket of @addr, which then lacks @most seconds until it is full, or less.
local function take(self, addr, now, most)
  local full = self.buckets[addr]
  if not full then
    if self.count >= self.max then shrink(self, now) end
    self.count = self.count + 1
  end
  self.buckets[addr] = now + math.min(lacks(full, now) + self.every, most)
end

-- May @addr do it once more at @now (seconds, any origin)? Then it has done it.
function M:allow(addr, now)
  addr = cidr.group(addr)
  if not has_one(self, self.buckets[addr], now) then return false end
  take(self, addr, now, math.huge)
  return true
end

-- The same in two steps, for what is known only afterwards, if it counts at all: may it, and it has. Who has done it
-- more often than it might, many at once, waits for longer, but no more than twice as long.
function M:may(addr, now)
  return has_one(self, self.buckets[cidr.group(addr)], now)
end

function M:done(addr, now)
  take(self, cidr.group(addr), now, 2 * self.burst * self.every)
end

return M
