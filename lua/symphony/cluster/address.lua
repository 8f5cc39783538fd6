-- "host:port" as people write it: names, IPv4, [IPv6]. Pure.
local cidr = require "symphony.cluster.cidr"
local errors = require "symphony.errors"

local M = {}

local HINT = "write HOST:PORT, for example 10.0.0.5:27242, [fd00::5]:27242 or manager-01.example.org"

local function bad(text, why)
  local shown = type(text) == "string" and text:sub(1, 80):gsub("[^\x20-\x7e]", "?") or "?"
  return nil, errors.new("invalid", ("\"%s\" is no address: %s"):format(shown, why), HINT)
end

-- Is @text an IP address or a host name (RFC 1123)?
function M.valid_host(text)
  if type(text) ~= "string" or #text == 0 or #text > 253 then return false end
  if cidr.parse_ip(text) then return true end
  if not text:match("^[%w%.%-_]+$") or text:match("^[%d%.]+$") then return false end
  for label in (text:gsub("%.$", "") .. "."):gmatch("([^.]*)%.") do
    if #label == 0 or #label > 63 or label:match("^%-") or label:match("%-$") then return false end
  end
  return true
end

-- To host, port; or nil, err. @default_port nil: the port is required.
function M.parse(text, default_port)
  if type(text) ~= "string" or #text == 0 then return bad(text, "it is empty") end
  if #text > 300 then return bad(text, "it is too long") end
  local host, port = text:match("^%[([^%]]*)%]:(%d+)$")
  if not host then host = text:match("^%[([^%]]*)%]$") end
  if host and not cidr.parse_ip(host) then return bad(text, "what is in the brackets is no IPv6 address") end
  if not host then
    if select(2, text:gsub(":", "")) > 1 then
      host = text -- IPv6 without brackets and without a port
      if not cidr.parse_ip(host) then return bad(text, "too many colons") end
    else
      host, port = text:match("^([^:]*):(.*)$")
      host = host or text
      if port and not port:match("^%d+$") then return bad(text, "the port is no number") end
    end
  end
  if not M.valid_host(host) then return bad(text, "that is neither an IP address nor a host name") end
  port = port and (#port <= 5 and tonumber(port) or 0) or default_port
  if not port then return bad(text, "the port is missing") end
  if port < 1 or port > 65535 then return bad(text, "a port is a number from 1 to 65535") end
  return host, port
end

function M.format(host, port)
  return host:find(":", 1, true) and ("[%s]:%d"):format(host, port) or ("%s:%d"):format(host, port)
end

-- True if it parses, with a port.
function M.valid(text)
  return M.parse(text) ~= nil
end

-- Does "host:port" @text stay on this machine?
function M.is_loopback(text)
  local host = M.parse(text, 1)
  return host ~= nil and cidr.is_loopback(host)
end

return M
