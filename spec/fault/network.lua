-- Hosts of our own on one machine: a network namespace for each, joined by a bridge in another one. Needs root (of a
-- user namespace is enough). A host is cut off from another by a route into nothing: what it sends there is lost,
-- connections that stand stay and see silence, as behind a switch that has failed.
local uv = require "luv"
local proc = require "spec.support.proc"

local M = {}

local network = {}
network.__index = network

local function ip(...)
  local result = proc.run({ "ip", ... }, { timeout = 10 })
  return result.code == 0, result.err
end

local function must(...)
  local ok, err = ip(...)
  if not ok then error(("ip %s: %s"):format(table.concat({ ... }, " "), err), 2) end
end

-- What a run that was killed has left behind.
local function sweep()
  for name, pid in proc.run({ "ip", "netns", "list" }).out:gmatch("(sym%-(%d+)%-%w+)") do
    if not uv.fs_stat("/proc/" .. pid) then ip("netns", "del", name) end
  end
end

-- @n hosts, or nil and why this machine does not let us.
function M.new(n)
  sweep()
  local self = setmetatable({ n = n, base = ("sym-%d-"):format(uv.os_getpid()), cuts = {}, rules = {} }, network)
  local ok, err = ip("netns", "add", self.base .. "hub")
  if not ok then return nil, err end
  local hub = self.base .. "hub"
  local built, why = pcall(function()
    must("-n", hub, "link", "add", "br0", "type", "bridge")
    must("-n", hub, "link", "set", "br0", "up")
    for i = 1, n do
      local host, port = self:name(i), "p" .. i
      must("netns", "add", host)
      must("-n", hub, "link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", host)
      must("-n", hub, "link", "set", port, "master", "br0", "up")
      must("-n", host, "link", "set", "lo", "up")
      must("-n", host, "addr", "add", self:address(i) .. "/24", "dev", "eth0")
      must("-n", host, "link", "set", "eth0", "up")
    end
  end)
  if not built then
    self:close()
    return nil, why
  end
  return self
end

function network:name(i)
  return self.base .. i
end

function network:address(i)
  return "10.213.7." .. i
end

-- Words that run a program on host @i.
function network:prefix(i)
  return { "nsenter", "--net=/run/netns/" .. self:name(i) }
end

-- What @from sends to @to is lost. Both directions are cut one by one.
function network:cut(from, to)
  local key = from .. ">" .. to
  if self.cuts[key] then return end
  must("-n", self:name(from), "route", "add", "blackhole", self:address(to) .. "/32")
  self.cuts[key] = { from, to }
end

function network:isolate(i)
  for other = 1, self.n do
    if other ~= i then
      self:cut(i, other)
      self:cut(other, i)
    end
  end
end

-- Datagrams from and to host @i are lost; connections are not.
function network:cut_datagrams(i)
  local function rule(host, ...)
    local words = { "ipproto", "udp", "blackhole", ... }
    must("-n", self:name(host), "rule", "add", table.unpack(words))
    table.insert(self.rules, { self:name(host), words })
  end
  rule(i)
  for other = 1, self.n do
    if other ~= i then rule(other, "to", self:address(i) .. "/32") end
  end
end

function network:heal()
  for _, rule in ipairs(self.rules) do must("-n", rule[1], "rule", "del", table.unpack(rule[2])) end
  self.rules = {}
  for key, cut in pairs(self.cuts) do
    must("-n", self:name(cut[1]), "route", "del", "blackhole", self:address(cut[2]) .. "/32")
    self.cuts[key] = nil
  end
end

function network:close()
  for i = 1, self.n do ip("netns", "del", self:name(i)) end
  ip("netns", "del", self.base .. "hub")
end

return M
