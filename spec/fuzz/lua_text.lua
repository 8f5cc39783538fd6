local address = require "symphony.cluster.address"
local cidr = require "symphony.cluster.cidr"
local errors = require "symphony.errors"
local values = require "symphony.cluster.values"

local function refused(err, code)
  assert(errors.is(err) and err.code == (code or "invalid") and #err.message < 500, tostring(err))
end

local function check_address(text)
  local host, port = address.parse(text, 27242)
  if not host then return refused(port) end
  assert(address.valid_host(host) and math.type(port) == "integer" and port >= 1 and port <= 65535)
  local again, same = address.parse(address.format(host, port))
  assert(again == host and same == port, "an address becomes another one")
  address.is_loopback(text)
end

-- Bit by bit, as the module does not do it.
local function within(net, bytes)
  for i = 0, net.bits - 1 do
    local at, bit = i // 8 + 1, 0x80 >> i % 8
    if net.bytes:byte(at) & bit ~= bytes:byte(at) & bit then return false end
  end
  return true
end

local function check_cidr(text)
  local net = cidr.parse(text)
  if not net then return end
  assert((#net.bytes == 4 or #net.bytes == 16) and net.bits >= 0 and net.bits <= 8 * #net.bytes)
  local ip = text:match("^[^/]+")
  assert(cidr.contains(net, ip), "a block without its own address")
  for _, other in ipairs { "10.0.0.1", "::1", "fd00::5", "255.255.255.255", "::ffff:1.2.3.4" } do
    local bytes = cidr.parse_ip(other)
    assert(cidr.contains(net, other) == (#bytes == #net.bytes and within(net, bytes)), other)
  end
end

local function check_values(text)
  local name, err = values.check_name(text)
  if not name then refused(err) else assert(name == text and #name <= 63 and not name:find("[^%w%._%-]")) end
  assert(values.check_name(values.name_from(text)))
  local seconds
  seconds, err = values.parse_duration(text)
  if seconds == nil then refused(err) else
    assert(seconds == false or math.type(seconds) == "integer" and seconds >= 1 and seconds <= 10 * 365 * 86400)
  end
  local at
  at, err = values.parse_since(text, 1700000000)
  if at == nil then refused(err) else
    assert(math.type(at) == "integer" and at < 1e12)
    if at >= 0 and at < 1 << 37 then assert(values.parse_since(values.format_time(at), 0) == at) end
  end
  local list = {}
  for word in text:gmatch("[^,]+") do list[#list + 1] = word end
  local labels
  labels, err = values.parse_labels(list)
  if not labels then
    refused(err, err.code == "usage" and "usage") -- which what is no KEY=VALUE is
  else
    assert(values.check_labels(labels))
    values.format_labels(labels)
  end
end

local function check_bytes(text)
  for _, put in ipairs { values.put_bytes, values.put_short } do
    assert(values.get_bytes(put({}, "v", text), "v") == text)
  end
  local bytes, err = values.get_bytes({ v_base64 = text }, "v")
  if not bytes then refused(err) end
end

return {
  check = function(text)
    check_address(text)
    check_cidr(text)
    check_values(text)
    check_bytes(text)
  end,
  seeds = { "10.0.0.5:27242", "[fd00::5]:27242", "manager-01.example.org", "fe80::1%eth0", "::ffff:10.0.0.1",
    "10.0.0.0/8", "fd00::/8", "zone=a,rack=b-1", "24h", "never", "aGVsbG8=",
    "2026-11-30", "2026-11-30T17:05:09Z", "2024-02-29 23:59", "@1700000000" },
  words = { ":", "::", ".", "/", "[", "]", "%", "0", "1", "255", "ffff", "=", ",", "/32", "/128", "\0", "h" },
}
