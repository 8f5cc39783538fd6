-- What this node sees of the others: the glue between the gossip driver (sym.gossip) and what the node knows from the
-- state: who belongs to the cluster, by which key, and with which gossip keys it speaks.
--
-- A node's metadata is a JSON array, versioned by its first number:
--   [1, remote port, "m" or "w", services, highest gossip key it accepts, key it uses, version]
-- and of a manager whose raft address has changed since it joined, moreover
--   raft id, how often, raft address
local address = require "symphony.cluster.address"
local async = require "symphony.async"
local cidr = require "symphony.cluster.cidr"
local crypto = require "sym.crypto"
local driver = require "sym.gossip"
local errors = require "symphony.errors"
local identity = require "symphony.cluster.identity"
local json = require "symphony.json"
local keyring = require "symphony.cluster.keyring"
local limiter = require "symphony.cluster.limiter"
local log = require "sym.log"
local remote = require "symphony.cluster.remote"
local sys = require "sym.sys"

local M = {}

local META_VERSION = 1
local META_MAX = 192          -- bytes, as the driver takes them
local SERVICES_BYTES = 80     -- of these
local PROBE_MS = 1000
local EXCHANGE_MS = 5000
local PIECE = 12 * 1024
local PIECES_MAX = 4096       -- 48 MiB: no state is that large
local EXCHANGES_MAX = 4       -- at once
local EXCHANGE_GAP_MS = 2000  -- between those that gossip asks for, and a ms for each member that has to be told
local EXCHANGE_AGAIN_MS = 500 -- after one that failed, as with a node that is down by now
local ROLES = { m = "manager", w = "worker" }

local g                       -- the driver; nil: not started
local starting                -- what stands for the start that is under way
local announced               -- address and metadata that the others were told last
local known = {}              -- the ids of the nodes whose keys the driver has
local ring = { highest = 0, use = 0 }
local listeners = {}
local exchanging, exchanges, exchange_from = {}, 0, 0
local lost = limiter.new(5, 120, 4096)  -- of probes that only the remote port has answered; more are told,
local told = limiter.new(1, 3600, 4096) -- and each node once an hour

-- Metadata --------------------------------------------------------------------------------------------------------

-- @m: remote_port, role, services (array), ring, ring_use, version, raft ({id, moves, address} or nil). Where all of it
-- is too long, an address that is a long name is left out: it is learned in other ways. Pure.
function M.encode_meta(m)
  local list = json.array { META_VERSION, m.remote_port, m.role:sub(1, 1), table.concat(m.services or {}, ","),
    m.ring, m.ring_use, m.version }
  local short = json.encode(list)
  if not m.raft then return short end
  list[8], list[9], list[10] = m.raft.id, m.raft.moves, m.raft.address
  local long = json.encode(list)
  return #long <= META_MAX and long or short
end

local KINDS = { "integer", "integer", "string", "string", "integer", "integer", "string" }

local function raft_of(id, moves, at)
  if math.type(id) ~= "integer" or id < 1 or math.type(moves) ~= "integer" or moves < 1 or not address.valid(at) then
    return nil
  end
  return { id = id, moves = moves, address = at }
end

-- The other way; {} for bytes of another version, or that are none. It is signed by its node, which may lie all the
-- same. Pure.
function M.decode_meta(text)
  local doc = #text > 0 and json.decode(text)
  if type(doc) ~= "table" or doc[1] ~= META_VERSION then return {} end
  for i, kind in ipairs(KINDS) do
    local v = doc[i]
    if (kind == "integer" and math.type(v) or type(v)) ~= kind then return {} end
  end
  local role, services = ROLES[doc[3]], json.array {}
  if not role or doc[2] < 1 or doc[2] > 65535 then return {} end
  for word in doc[4]:gmatch("[%w_%-]+") do services[#services + 1] = word end
  return { remote_port = doc[2], role = role, services = services, ring = doc[5], ring_use = doc[6],
    version = doc[7], raft = raft_of(doc[8], doc[9], doc[10]) }
end

-- The services of this worker: as many as fit, since metadata is short; its record has all of them.
local function service_names()
  local list = { identity.word() }
  if #(sys.options().lua_dirs or {}) == 0 and #require "symphony.services.built_in" == 0 then return list end
  local bytes = #list[1]
  for _, name in ipairs(require("symphony.services.worker").names()) do
    bytes = bytes + #name + 1
    if name ~= list[1] and bytes <= SERVICES_BYTES then list[#list + 1] = name end
  end
  return list
end

local function own_meta()
  local me = identity.me
  local _, remote_port = address.parse(me.advertise.remote)
  return M.encode_meta { remote_port = remote_port, role = me.role, services = me.role == "worker" and
    service_names() or nil, ring = ring.highest, ring_use = ring.use, version = sys.version,
    raft = me.moves and { id = me.raft_node_id, moves = me.moves, address = me.advertise.raft } or nil }
end

-- The numeric "ip:port" that "host:port" @text means now, of the family at which we listen. In a task. nil, err.
local function numeric(text)
  local host, port = address.parse(text)
  if not host then return nil, port end
  if cidr.parse_ip(host) then return address.format(host, port) end
  local is_v4 = not (sys.options().bind_addr or "0.0.0.0"):find(":", 1, true)
  local found, err = async.await(require("luv").getaddrinfo, host, nil, { socktype = "dgram",
    family = is_v4 and "inet" or nil })
  if not found or not found[1] then
    return nil, errors.new("unreachable", ("%s does not resolve: %s"):format(host,
      err and err.message or "nothing found"))
  end
  return address.format(found[1].addr, port)
end

-- Keys and peers --------------------------------------------------------------------------------------------------

-- Of /secret/gossip, or the same from a manager: for the driver, and {highest, use}: which is the highest, and which is
-- in use. nil, err. Pure but for the decoding.
function M.read_keys(doc)
  local list, highest, use = {}, 0, 0
  local record, err = keyring.read(doc)
  if not record then return nil, err end
  for i, k in ipairs(record.keys) do
    local secret = crypto.unbase64(k.secret)
    if not secret or #secret ~= 32 then return nil, errors.new("corrupt", "the gossip keys are damaged") end
    list[i] = { id = k.id, secret = secret, use = k.use }
    highest = math.max(highest, k.id)
    if k.use then use = k.id end
  end
  return list, { highest = highest, use = use }
end

-- These are the keys now; the others learn from our metadata that we have them.
function M.set_keys(doc)
  if not g then return true end
  local list, found = M.read_keys(doc)
  if not list then return nil, found end
  local ok, err = g:keys(list)
  if not ok then return nil, err end
  if found.highest ~= ring.highest or found.use ~= ring.use then
    ring = found
    return M.announce()
  end
  return true
end

-- Tells the others what we are now, if it is something else than before: address, which may be a name that means
-- another one by now, and metadata. In a task. nil, err.
function M.announce()
  local driver_then = g
  if not g then return true end
  local at, err = numeric(identity.me.advertise.gossip)
  if not at then return nil, err end
  if g ~= driver_then then return true end -- it was stopped meanwhile
  local meta = own_meta()
  if announced == at .. meta then return true end
  local ok
  ok, err = g:update { address = at, meta = meta }
  if not ok then return nil, err end
  announced = at .. meta
  return true
end

-- Node @id is one of the cluster, with this key (base64 of its SubjectPublicKeyInfo).
function M.set_peer(id, key)
  if not g then return end
  local spki, err = crypto.unbase64(key)
  local ok = spki
  if spki then ok, err = g:peer(id, spki) end
  if ok == nil and err then log.warn(("gossip: the key of node %s is no good: %s"):format(id, err.message)) end
  known[id] = true
end

-- Node @id is none any more.
function M.forget(id)
  if g then g:forget(id) end
  known[id] = nil
end

-- These are all the nodes of the cluster: {id = key}.
function M.set_peers(all)
  for id in pairs(known) do
    if not all[id] then M.forget(id) end
  end
  for id, key in pairs(all) do M.set_peer(id, key) end
end

-- What is seen ------------------------------------------------------------------------------------------------------

local function decorate(member)
  if member then member.info = M.decode_meta(member.meta) end
  return member
end

-- Member @id as sym.gossip has it, with .info, its metadata decoded; nil when gossip does not know it. And all of them.
function M.member(id)
  return g and decorate(g:member(id)) or nil
end

function M.members()
  local list = g and g:members() or {}
  for _, member in ipairs(list) do decorate(member) end
  return list
end

-- The driver's local health: 0 is good.
function M.health()
  return g and g:health() or 0
end

-- Members alive or suspect, with this node.
function M.count()
  return g and g:count() or 0
end

-- The driver's numbers; nil when it is not started.
function M.stats()
  return g and g:stats() or nil
end

function M.started()
  return g ~= nil
end

-- fn(what, member) for every event of sym.gossip, from now on.
function M.on_event(fn)
  listeners[#listeners + 1] = fn
end

-- The remote port --------------------------------------------------------------------------------------------------

local function call(member, method, path, body, timeout_ms)
  local tls, info = identity.tls, member.info
  if not tls then return nil, errors.new("closed", "this node is not serving") end
  if not info.remote_port then return nil, errors.new("unreachable", "its remote port is not known") end
  local host = address.parse(member.address)
  local doc, err, response = remote.call { at = address.format(host, info.remote_port), method = method, path = path,
    body = body, role = info.role, timeout_ms = timeout_ms,
    tls = { ca = tls.ca, cert = tls.cert, key = tls.key, expired_ok = true } }
  if doc == nil then return nil, err end
  if type(doc) ~= "table" then return nil, errors.new("protocol", "its answer is no JSON object") end
  if member.node_id and response.peer.cn ~= member.node_id then
    return nil, errors.new("unauthenticated", "another node answers at its address")
  end
  return doc, response.peer.cn
end

-- Does node @id answer at its remote port, over TLS, with its own certificate? @at: another "host:port" to look at than
-- the one that it says. true; nil, err; within a second. In a task.
function M.probe(id, at)
  local member = M.member(id)
  if at then
    member = { node_id = id, address = at, info = { remote_port = select(2, address.parse(at)),
      role = member and member.info.role } }
  end
  if not member then return nil, errors.new("not_found", "gossip does not know this node") end
  local doc, err = call(member, "GET", "/healthz", nil, PROBE_MS)
  if not doc then return nil, err end
  return true
end

-- One step of a full exchange, for whoever asks: takes @piece in (raw bytes or nil) from @from, and gives {piece =
-- (base64), cursor = where the next begins}: ours at @cursor, nil for who has all of it. nil, err.
function M.exchange_step(from, piece, cursor)
  if not g then return nil, errors.new("closed", "gossip is not started here") end
  if piece then
    local ok, err = g:merge(from, piece)
    if not ok then return nil, err end
  end
  if not cursor then return {} end
  local bytes, after = g:export(cursor, PIECE)
  if not bytes then return nil, after end
  return { piece = crypto.base64(bytes), cursor = after > 0 and after or nil }
end

local function exchange(member)
  local ours, theirs = 0, 0
  for _ = 1, PIECES_MAX do
    local piece
    if ours then
      local after
      piece, after = g:export(ours, PIECE)
      if not piece then return nil, after end
      ours = after > 0 and after or nil
    end
    local doc, id = call(member, "POST", "/v1/gossip", { cursor = theirs, piece = piece and crypto.base64(piece) },
      EXCHANGE_MS)
    if not doc then return nil, id end
    if not g then return true end
    local got = type(doc.piece) == "string" and crypto.unbase64(doc.piece)
    if got then
      local ok, why = g:merge(id, got)
      if not ok then return nil, why end
    end
    theirs = math.type(doc.cursor) == "integer" and doc.cursor > 0 and doc.cursor or nil
    if not ours and not theirs then return true end
  end
  return nil, errors.new("too_big", "the exchange does not end")
end

-- Full states both ways with @member. In a task. nil, err: "busy" when that, or enough else of the kind, is under way.
function M.exchange(member)
  local at = member.address
  if not g then return nil, errors.new("closed", "gossip is not started here") end
  if exchanging[at] or exchanges >= EXCHANGES_MAX then
    return nil, errors.new("busy", "an exchange is under way", "say it again in some seconds")
  end
  exchanging[at], exchanges = true, exchanges + 1
  local _ <close> = setmetatable({}, { __close = function()
    exchanging[at], exchanges = nil, exchanges - 1
  end })
  local ok, err = exchange(member)
  if not ok then log.debug(("gossip: no exchange with %s: %s"):format(at, err.message)) end
  return ok, err
end

-- The same with the node whose remote port is at @at ("host:port"), whom gossip need not know yet. @role: "manager"
-- unless it is given.
function M.exchange_with(at, role)
  return M.exchange { address = at, info = { remote_port = select(2, address.parse(at)), role = role or "manager" } }
end

-- Life ----------------------------------------------------------------------------------------------------------------

-- Gossip asks for an exchange with @member. After a partition everybody returns at once, and one exchange tells of all
-- of them; one that failed has told nothing, and the next who asks need not wait.
local function exchange_if_due(member)
  local now = sys.mono_ms()
  if now < exchange_from then return end
  local from = now + EXCHANGE_GAP_MS + M.count()
  exchange_from = from
  async.spawn(function()
    if not M.exchange(member) and exchange_from == from then
      exchange_from = math.min(from, sys.mono_ms() + EXCHANGE_AGAIN_MS)
    end
  end)
end

local on_event

function on_event(_, what, member)
  if what == "lost" then
    -- More has happened than could be told: every member is looked at.
    for _, m in ipairs(M.members()) do on_event(nil, "updated", m) end
    return
  end
  decorate(member)
  if what == "returned" or what == "differs" then
    exchange_if_due(member)
  elseif what == "double" then
    log.warn(("gossip: somebody else speaks as %s: was a folder copied?"):format(member.node_id))
  end
  for _, fn in ipairs(listeners) do
    local ok, err = xpcall(fn, errors.handler, what, member)
    if not ok then log.error("gossip: " .. (err.traceback or err.message)) end
  end
end

-- Node @member has answered at its remote port, and its datagrams had not come in time.
local function note_lost(member)
  local now = sys.mono_ms() / 1000
  if lost:allow(member.node_id, now) or not told:allow(member.node_id, now) then return end
  log.warn(("gossip: node %s answers at its remote port, and again and again no datagram from it arrives: is the way "
    .. "of UDP from and to %s blocked?"):format(member.node_id, member.address))
end

local function on_probe(_, member, ticket)
  async.spawn(function()
    local alive = call(decorate(member), "GET", "/healthz", nil, PROBE_MS) ~= nil
    if not g then return end
    g:probe_done(ticket, alive)
    if alive then note_lost(member) end
  end)
end

-- Begins to speak as this node; nothing when it does. what() gives the keys (of /secret/gossip) and the peers ({id =
-- key (base64)}) when all else is there. In a task. nil, err: "closed" when it was stopped meanwhile.
function M.start(what)
  if g then return true end
  local me, tls, options, mine = identity.me, identity.tls, sys.options(), {}
  starting = mine
  local at, err = numeric(me.advertise.gossip)
  if starting ~= mine then return nil, errors.new("closed", "gossip was stopped before it had begun") end
  starting = nil
  if not at then return nil, err end
  local keys, all = what()
  local list, found = M.read_keys(keys)
  if not list then return nil, found end
  ring, known = found, {}
  local _, port = address.parse(me.advertise.gossip)
  local meta = own_meta()
  announced = at .. meta
  g, err = driver.open { node_id = me.node_id, cluster_id = me.cluster_id, start = me.gossip_start,
    bind_addr = options.bind_addr or "0.0.0.0", port = port, address = at, meta = meta, key = tls.key, keys = list }
  if not g then
    return nil, errors.new(err.code, "gossip port: " .. err.message,
      "start symphonyd with another --listen-gossip-port, or stop what uses this one")
  end
  M.set_peers(all or {})
  g:on_event(on_event)
  g:on_probe(on_probe)
  return true
end

-- Tells the others that this node leaves, and falls silent. In a task; within a second.
function M.leave()
  local leaving = g
  if leaving then async.await(function(done) return leaving:leave(done) end) end
  M.stop()
end

-- Falls silent at once. Said twice, it is one.
function M.stop()
  if g then g:close() end
  g, starting, known = nil, nil, {}
end

-- The number that a process begins with must rise with every start: what was sealed under an earlier one is then no
-- replay, and no nonce is used twice. For key.json.
function M.next_start(last)
  return math.max(math.floor(sys.now() * 1000), (last or 0) + 1)
end

return M
