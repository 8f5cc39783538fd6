-- Sends the datagrams of a file to a port of loopback, again and again, as fast as it can, until it is killed.
--
--   lua5.4 spec/support/blast.lua PORT FILE        FILE: datagrams, each after its length in two bytes
local uv = require "luv"

local port, path = assert(tonumber(arg[1])), assert(arg[2])
local file = assert(io.open(path, "rb"))
local text, list, from = file:read("a"), {}, 1
file:close()
while from <= #text do
  list[#list + 1], from = string.unpack("<s2", text, from)
end
assert(#list > 0, "no datagrams")
local udp = uv.new_udp()
while true do
  for _, datagram in ipairs(list) do udp:try_send(datagram, "127.0.0.1", port) end
end
