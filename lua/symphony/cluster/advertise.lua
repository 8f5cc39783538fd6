-- The addresses that others are told, and the ports behind them.
local address = require "symphony.cluster.address"
local cidr = require "symphony.cluster.cidr"
local errors = require "symphony.errors"
local sys = require "sym.sys"

local M = {}

M.KINDS = { "raft", "remote", "gossip" }
local GOSSIP_PORT = 37065

-- "host" and options to {raft, remote, gossip}; a worker has no raft port. Pure.
function M.of(host, options)
  local out = {}
  for _, kind in ipairs(M.KINDS) do
    local port = options[kind .. "_port"]
    out[kind] = port and address.format(host, port)
  end
  return out
end

-- All of "host:port" by kind at 127.0.0.1. Pure.
function M.on_loopback(addresses)
  local out = {}
  for kind, text in pairs(addresses) do out[kind] = address.format("127.0.0.1", select(2, address.parse(text))) end
  return out
end

local ANYWHERE = { ["0.0.0.0"] = true, ["::"] = true }

-- The host to advertise: @wanted (a flag of the command), else the daemon's --advertise-addr, else the one address that
-- it listens at, else that of the default route; in development mode the loopback unless somebody said otherwise, and
-- nothing but loopback. And whether nobody said anything. nil, err. Pure but for @default, a function.
function M.pick(wanted, options, dev, default)
  if wanted and options.advertise_addr and wanted ~= options.advertise_addr then
    return nil, errors.new("invalid", ("symphonyd was started with --advertise-addr %s, and will be again; %s "
      .. "would not last"):format(options.advertise_addr, wanted:sub(1, 80)),
      "leave --advertise out, or start symphonyd with it")
  end
  local bound = not ANYWHERE[options.bind_addr or "0.0.0.0"] and options.bind_addr or nil
  local said = wanted or options.advertise_addr or bound
  local host = said or (dev and "127.0.0.1") or default()
  if not address.valid_host(host) then
    return nil, errors.new("invalid", ("\"%s\" is no address to advertise"):format(host:sub(1, 80)),
      "give an IP address or a host name, without a port")
  end
  if dev and not cidr.is_loopback(host) then
    return nil, errors.new("invalid", ("--dev is for one's own machine only, but %s would be advertised"):format(host),
      "start symphonyd with --advertise-addr 127.0.0.1, or leave --dev out")
  end
  if host == "0.0.0.0" or host == "::" then
    return nil, errors.new("invalid", host .. " is where to listen, not an address that others can reach",
      "give the address of this machine with --advertise")
  end
  return host, said == nil
end

-- Did nobody choose what pick() gave for @wanted? Where the daemon listens, or what its machine has, may change.
function M.follows(wanted, options)
  return not wanted and not options.advertise_addr
end

-- Has this machine the IP address @host?
function M.has(host)
  local socket = require("luv").new_udp()
  local ok = socket:bind(host, 0)
  socket:close()
  return ok ~= nil
end

-- The host with which @doc (key.json) goes on: what the daemon is told; else, if it follows, the one address that it
-- listens at; else that of before for as long as the machine has it, whatever other networks it is in by now; else the
-- machine's, @default(), while that has one. Pure but for @default and has().
function M.host(doc, options, default)
  local before, bound = address.parse(doc.advertise.remote, 1), options.bind_addr or "0.0.0.0"
  if options.advertise_addr then return options.advertise_addr end
  if not doc.follows then return before end
  if not ANYWHERE[bound] then return bound end
  local now = default()
  if now == "127.0.0.1" or not cidr.is_loopback(before) and M.has(before) then return before end
  return now
end

-- Are these the same addresses? Pure.
function M.same(a, b)
  for _, kind in ipairs(M.KINDS) do
    if a[kind] ~= b[kind] then return false end
  end
  return true
end

local function socket_of(kind)
  local uv = require "luv"
  return kind == "gossip" and uv.new_udp() or uv.new_tcp()
end

-- A port that was given as 0 is fixed now: a free one, kept from then on.
local function fix(kind, port, bind)
  if port ~= 0 then return port end
  local socket = socket_of(kind)
  local ok = socket:bind(bind, 0) and socket:getsockname()
  socket:close()
  return ok and ok.port or 0
end

-- Can @port be listened on? true; or false, why, name of the error.
local function try(kind, bind, port)
  local socket = socket_of(kind)
  local bound, why, name = socket:bind(bind, port)
  if bound and kind ~= "gossip" then bound, why, name = socket:listen(1, function() end) end
  socket:close()
  return bound, why, name
end

-- The gossip port that nobody chose: that of before, or the usual one. Others are told where it is, so that it can give
-- way to what is there already.
local function any_gossip_port(known, bind)
  for _, port in ipairs { known and select(2, address.parse(known, 0)) or GOSSIP_PORT, GOSSIP_PORT } do
    if try("gossip", bind, port) then return port end
  end
  return fix("gossip", 0, bind)
end

-- The daemon's options with every port fixed; @known: advertised addresses of before, whose ports are kept for 0.
function M.options(known)
  local options = {}
  for k, v in pairs(sys.options()) do options[k] = v end
  local bind = options.bind_addr or "0.0.0.0"
  for _, kind in ipairs(M.KINDS) do
    local name = kind .. "_port"
    if kind == "gossip" and not options.gossip_given then
      options[name] = any_gossip_port(known and known.gossip, bind)
    elseif options[name] == 0 and known then
      options[name] = select(2, address.parse(known[kind], 0))
    elseif options[name] then
      options[name] = fix(kind, options[name], bind)
    end
  end
  return options
end

-- Are the ports free to listen on? true; nil, err. What is found free may be taken a moment later: this is for the
-- clear message before anything has been asked of anybody.
function M.check_ports(options)
  for _, kind in ipairs(M.KINDS) do
    local port = options[kind .. "_port"]
    local bound, why, name = true, nil, nil
    if port then bound, why, name = try(kind, options.bind_addr or "0.0.0.0", port) end
    if not bound then
      return nil, errors.new(name == "EADDRINUSE" and "in_use" or "io",
        ("cannot listen on %s port %d: %s"):format(kind, port, why),
        ("start symphonyd with another --listen-%s-port, or stop what uses this one"):format(kind))
    end
  end
  return true
end

return M
