-- IP addresses and CIDR blocks, IPv4 and IPv6. Pure; the text comes from outside.
local M = {}

local MAX_TEXT = 64

local function parse_v4(text)
  local a, b, c, d = text:match("^(%d%d?%d?)%.(%d%d?%d?)%.(%d%d?%d?)%.(%d%d?%d?)$")
  if not a then return nil end
  local bytes = {}
  for i, part in ipairs { a, b, c, d } do
    local n = tonumber(part)
    if n > 255 or (#part > 1 and part:sub(1, 1) == "0") then return nil end
    bytes[i] = n
  end
  return string.char(table.unpack(bytes))
end

-- The groups of one side of "::", as bytes; an IPv4 tail counts as two groups.
local function v6_groups(text)
  if text == "" then return "" end
  local out, rest = {}, text
  while true do
    local group, more = rest:match("^([^:]*):(.*)$")
    group = group or rest
    if group:find(".", 1, true) then
      local v4 = not more and parse_v4(group)
      if not v4 then return nil end
      out[#out + 1] = v4
    else
      if not group:match("^%x%x?%x?%x?$") then return nil end
      out[#out + 1] = string.pack(">I2", tonumber(group, 16))
    end
    if not more then return table.concat(out) end
    rest = more
  end
end

local function parse_v6(text)
  local head, tail = text:match("^(.-)::(.*)$")
  if not head then
    local bytes = v6_groups(text)
    return bytes and #bytes == 16 and bytes or nil
  end
  local left, right = v6_groups(head), v6_groups(tail)
  if not left or not right or #left + #right > 14 then return nil end
  return left .. ("\0"):rep(16 - #left - #right) .. right
end

local V4_IN_V6 = ("\0"):rep(10) .. "\xff\xff"

-- The 4 or 16 bytes of an address; nil if it is none. A zone ("%eth0") is dropped; an IPv4 address written as IPv6
-- (::ffff:1.2.3.4), as a socket that takes both gives it, is the IPv4 address.
function M.parse_ip(text)
  if type(text) ~= "string" or #text == 0 or #text > MAX_TEXT then return nil end
  local v4 = parse_v4(text)
  if v4 then return v4 end
  local v6 = parse_v6((text:gsub("%%[%w%.%-_]+$", "")))
  if v6 and v6:sub(1, 12) == V4_IN_V6 then return v6:sub(13) end
  return v6
end

-- "10.0.0.0/8", "fd00::/8" or one address, to {bytes =, bits =, text =}; nil if it is none of them. Bits behind the
-- prefix have to be zero: 10.0.0.1/8 is more likely a mistake than a block.
function M.parse(text)
  if type(text) ~= "string" or #text > MAX_TEXT then return nil end
  local ip, bits = text:match("^([^/]+)/(%d%d?%d?)$")
  ip = ip or text
  local bytes = M.parse_ip(ip)
  if not bytes then return nil end
  local width = 8 * #bytes
  bits = bits and tonumber(bits) or width
  if bits > width then return nil end
  local net = { bytes = bytes, bits = bits, text = text }
  for i = 1, #bytes do
    local free = 8 - math.max(0, math.min(8, bits - 8 * (i - 1)))
    if bytes:byte(i) & ((1 << free) - 1) ~= 0 then return nil end
  end
  return net
end

-- Is address @text within @net (from parse)? The families must match.
function M.contains(net, text)
  local bytes = M.parse_ip(text)
  if not bytes or #bytes ~= #net.bytes then return false end
  local whole = net.bits // 8
  if bytes:sub(1, whole) ~= net.bytes:sub(1, whole) then return false end
  local rest = net.bits % 8
  if rest == 0 then return true end
  local mask = 0xff << (8 - rest) & 0xff
  return bytes:byte(whole + 1) & mask == net.bytes:byte(whole + 1) & mask
end

-- What is taken for one caller: an IPv4 address, an IPv6 /64 (one machine has as many addresses as it likes there), and
-- any other text as it is.
function M.group(text)
  local bytes = M.parse_ip(text)
  return bytes and bytes:sub(1, 8) or text
end

function M.is_loopback(text)
  if text == "localhost" then return true end
  local bytes = M.parse_ip(text)
  if not bytes then return false end
  if #bytes == 4 then return bytes:byte(1) == 127 end
  return bytes == ("\0"):rep(15) .. "\1"
end

return M
