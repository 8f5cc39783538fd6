-- The leader's side of a join: who gets in, as whom, in one txn.
--
-- check() and decide() are pure: a request and a view of the state give a decision. The same key is the same node: a
-- join that died half-way is said again and gets what it was given, whatever has become of its token. That the caller
-- has the key is what its certificate request proves while it is fresh (statement.lua). That alone takes nothing away:
-- a member's raft id is replaced for a token, or by a person, only.
local address = require "symphony.cluster.address"
local advertise = require "symphony.cluster.advertise"
local async = require "symphony.async"
local cidr = require "symphony.cluster.cidr"
local crypto = require "sym.crypto"
local engine = require "symphony.policy.engine"
local errors = require "symphony.errors"
local events = require "symphony.cluster.events"
local ids = require "symphony.cluster.ids"
local keyring = require "symphony.cluster.keyring"
local limiter = require "symphony.cluster.limiter"
local log = require "sym.log"
local members = require "symphony.cluster.members"
local pending = require "symphony.cluster.pending"
local peers = require "symphony.cluster.peers"
local pki = require "symphony.cluster.pki"
local raft = require "sym.raft"
local state = require "symphony.cluster.state"
local statement = require "symphony.cluster.statement"
local status_report = require "symphony.cluster.status_report"
local sys = require "sym.sys"
local token = require "symphony.cluster.token"
local values = require "symphony.cluster.values"

local M = {}

local CSR_MAX = 4096
local MANAGERS_MAX = 32
local SUFFIXES = 1000
local ADMIT_MS = 8000 -- a joiner waits ten seconds for its answer

local limit = limiter.new(8, 30, 1024) -- new requests without a token, by address
local turn = async.mutex()             -- joins would only get in each other's way: each takes the next raft id

local function invalid(message, hint)
  return nil, errors.new("invalid", message, hint)
end

-- Which addresses a node of @role has, of hostile @given: {kind = "host:port"}. nil, err. Pure.
function M.check_addresses(given, role)
  if type(given) ~= "table" then return invalid("addresses are missing") end
  local addresses = {}
  for _, kind in ipairs(advertise.KINDS) do
    local text = given[kind]
    if kind ~= "raft" or role == "manager" then
      local host, why = address.parse(text)
      if not host then return nil, why end
      addresses[kind] = text
    end
  end
  return addresses
end

-- Hostile JSON to {role, csr, name, named, addresses, services, implied (nobody chose their host), version, token
-- (parsed)}; nil, err.
function M.check(body)
  if type(body) ~= "table" then return invalid("the request is not a JSON object") end
  if not token.ROLES[body.role] then return invalid("role must be manager or worker") end
  if type(body.csr) ~= "string" or #body.csr > CSR_MAX then return invalid("csr is missing or too long") end
  local name, err = values.check_name(body.name)
  if not name then return nil, err end
  local addresses, services
  addresses, err = M.check_addresses(body.addresses, body.role)
  if addresses then services, err = status_report.check_services(body.services or {}) end
  if not services then return nil, err end
  if body.version ~= nil and (type(body.version) ~= "string" or #body.version > 64) then
    return invalid("version is no version")
  end
  local parsed
  if body.token ~= nil then
    parsed, err = token.parse(body.token)
    if not parsed then return nil, err end
  end
  return { role = body.role, csr = body.csr, name = name, named = body.named == true, addresses = addresses,
    services = body.role == "worker" and services or nil, implied = body.implied == true, version = body.version,
    token = parsed }
end

-- A free name: the wanted one; when a person chose it and it is taken, an error; else with the first free suffix.
-- Pure: @taken(name) -> bool.
function M.pick_name(wanted, named, taken)
  if not taken(wanted) then return wanted end
  if named then
    return nil, errors.new("exists", ("a node is called %s already"):format(wanted), "choose another --name")
  end
  for i = 2, SUFFIXES do
    local name = ("%s-%d"):format(wanted:sub(1, 58), i)
    if not taken(name) then return name end
  end
  return nil, errors.new("exists", ("no free name like %s"):format(wanted), "choose one with --name")
end

-- Raft refuses an address that it has: a new member under one would never get in.
local function check_address(request, view)
  local holder = view.holder
  if not holder then return true end
  local who = ("%s (raft id %d) has the raft address %s already"):format(holder.name, holder.raft_node_id,
    request.addresses.raft)
  if holder.removing then
    return nil, errors.new("conflict", who .. " and is being removed", "wait until it is gone, then join again")
  end
  return nil, errors.new("exists", who, view.holder_up
    and "each manager needs an address, or a --listen-raft-port, of its own"
    or ("if that was this machine before it lost its folder: `symphony manager remove %d` on another manager, "
      .. "then join again"):format(holder.raft_node_id))
end

-- What becomes of the node @view.node, whose key asks again: "existing" or "renumber"; nil, err.
local function returning(request, view)
  local n = view.node
  if n.removing then
    return nil, errors.new("conflict", ("%s is being removed from the cluster"):format(n.name),
      "wait until it is gone, then join again")
  end
  if n.role ~= request.role then
    return nil, errors.new("exists", ("this key is that of %s %s already"):format(n.role, n.name),
      "a node that is to have another role needs a folder of its own")
  end
  -- A manager that joins again says that it has no log. If raft knows its id as more than a newcomer's, that log is
  -- lost, and an empty one must not vote under the same id; and raft's address for an id does not change either, also
  -- when raft is only about to have it.
  local server, wanted = view.server, request.addresses.raft
  local used = server and (server.role ~= "spare" or server.address ~= wanted)
  if used and server.up then
    return nil, errors.new("exists", ("a manager with this key is running: %s at %s"):format(n.name, server.address),
      "a folder must not be copied: join with an empty one")
  elseif used or (n.role == "manager" and n.raft_address ~= wanted) then
    return "renumber"
  end
  return "existing"
end

-- What @request asks for: "existing", "renumber" or "create"; nil, err.
local function kind_of(request, view)
  if view.client then
    return nil, errors.new("exists", ("this key is that of the client certificate %s"):format(view.client),
      "a node needs a key of its own")
  end
  if view.node then return returning(request, view) end
  if request.role == "manager" and view.managers >= MANAGERS_MAX then
    return nil, errors.new("too_big", ("there are %d managers already"):format(view.managers))
  end
  return "create"
end

-- Is the token of @request good for @kind?
local function check_token(request, view, kind, now)
  local ok, err = token.check(view.token, request.role, view.from, now)
  if ok or kind == "create" then return ok, err end
  return nil, errors.new(err.code, err.message, ("%s was a manager with another log or raft address: to come back as a "
    .. "new member it needs a good token (`symphony token create` on a manager), or none and an approval"):format(
    view.node.name))
end

-- A cluster in development mode is on one machine.
local function check_dev(request, view)
  for _, text in pairs(view.cluster.dev and request.addresses or {}) do
    if not address.is_loopback(text) then
      return nil, errors.new("invalid", ("this cluster is in development mode, for one machine only, but %s would be "
        .. "advertised"):format(text),
        "on that machine join 127.0.0.1:PORT, and leave out what names another address than 127.0.0.1")
    end
  end
  return true
end

-- What becomes of @request (from check, with its fingerprint and what it states) at @now. @view: cluster; cas: the raw
-- sha256 of each CA certificate that it trusts; node, server: who has this key; client: the name of the client
-- certificate that has it; managers: how many there are; holder, holder_up: the other manager that has its raft
-- address; token: the record of the request's token; pending: the record of this key; pending_count; from: the caller's
-- address. Returns {kind = "existing"|"renumber"|"create"|"pend"|"wait", via =, record =}; nil, err. Pure.
function M.decide(request, view, now)
  local ok, err = statement.check(request.states, view.cas, now)
  if ok then ok, err = check_dev(request, view) end
  if not ok then return nil, err end
  local kind
  kind, err = kind_of(request, view)
  if not kind then return nil, err end
  if kind == "existing" then return { kind = kind } end
  if request.token then
    ok, err = check_token(request, view, kind, now)
    if not ok then return nil, err end
  end
  ok, err = check_address(request, view)
  if not ok then return nil, err end
  if request.token then return { kind = kind, via = "token" } end
  if view.cluster.dev and cidr.is_loopback(view.from) then return { kind = kind, via = "dev" } end
  local waiting = view.pending
  if waiting and waiting.rejected then
    return nil, errors.new("denied", "the request to join was turned down", "ask whoever runs the cluster")
  end
  if waiting and waiting.expires > now then
    if waiting.role ~= request.role then
      return nil, errors.new("conflict", ("this key asks to join as %s already"):format(waiting.role))
    end
    return { kind = "wait", record = waiting }
  end
  if not waiting and view.pending_count >= pending.MAX then
    return nil, errors.new("busy", ("%d requests wait for approval already"):format(view.pending_count),
      "join with a token, or have some approved or rejected (`symphony node pending`)")
  end
  return { kind = "pend", record = pending.record(request, view.from, now, view.node) }
end

-- The other manager that has the raft address of @request, and whether it is up.
local function find_holder(request, rows)
  for _, row in ipairs(rows) do
    local n = row.kv.value
    if n.raft_address == request.addresses.raft and n.fingerprint ~= request.fingerprint then
      for _, server in ipairs(assert(raft.status()).servers) do
        if server.id == n.raft_node_id then return n, server.up end
      end
      return n, false
    end
  end
end

-- The state as decide() wants it, for @request from @from; and the kvs that the txn will compare.
local function look(request, from)
  local view, kvs = { from = from }, {}
  view.cluster, kvs.cluster = assert(state.cluster())
  view.cas = {}
  for i, ca in ipairs(assert(pki.cas(view.cluster))) do view.cas[i] = crypto.unhex(ca.digest) end
  if view.cluster.dev and request.implied and cidr.is_loopback(from) then
    request.addresses = advertise.on_loopback(request.addresses)
  end
  local rows = assert(members.planned())
  view.managers = #rows
  if request.role == "manager" then view.holder, view.holder_up = find_holder(request, rows) end
  local owner = state.text("/fingerprint/" .. request.fingerprint)
  if owner then
    view.node, kvs.node = state.get("/node/" .. owner)
    view.client = owner:match("^%w+ (.*)$")
    for _, server in ipairs(assert(raft.status()).servers) do
      if view.node and server.id == view.node.raft_node_id then view.server = server end
    end
  end
  if request.token then view.token, kvs.token = state.get("/token/" .. token.hash(request.token.secret)) end
  view.pending, kvs.pending = state.get(pending.key(request.fingerprint))
  view.pending_count = #assert(state.list_raw("/pending/", { limit = pending.MAX + 1 }))
  return view, kvs
end

local function next_raft_id()
  local text, kv = state.text("/cluster/next_raft_id")
  local id = text and math.tointeger(tonumber(text))
  if not id then errors.raise("corrupt", "/cluster/next_raft_id is damaged") end
  return id, kv
end

local function take_raft_id(txn, node_id)
  local id, kv = next_raft_id()
  table.insert(txn.compare, state.unchanged(kv))
  table.insert(txn.ops, state.put("/cluster/next_raft_id", tostring(id + 1)))
  table.insert(txn.ops, state.put("/raft/" .. id, node_id))
  return id
end

-- Gives @n, whose key signed @csr, a certificate for what its record says. @txn, which writes the record, holds only
-- while the cluster (@kv is its record's) has the CA that signed.
local function certify(n, csr, cluster, kv, txn)
  local ca_key, ca_pem, issuer = assert(pki.load_ca())
  n.certificate = pki.sign(ca_key, ca_pem, csr, n, cluster.id, sys.now())
  local info = crypto.cert_info(n.certificate)
  n.certificate_expires, n.issuer = info.not_after, issuer
  table.insert(txn.compare, state.unchanged(kv))
  return info
end

-- The txn that makes a node of @request, and its record. @labels come from its token.
local function create(request, cluster, kv, labels)
  local name = assert(M.pick_name(request.name, request.named, function(text)
    return state.text("/name/" .. text) ~= nil
  end))
  local id = ids.new()
  local n = {
    node_id = id, name = name, role = request.role, fingerprint = request.fingerprint,
    raft_address = request.addresses.raft, remote_address = request.addresses.remote,
    gossip_address = request.addresses.gossip, services = request.services, labels = labels or {},
    availability = "active", version = request.version, joined = math.floor(sys.now()), trust = cluster.trust,
  }
  local txn = {
    compare = { state.absent("/node/" .. id), state.absent("/name/" .. name),
      state.absent("/fingerprint/" .. request.fingerprint) },
    ops = {},
  }
  if request.role == "manager" then n.raft_node_id = take_raft_id(txn, id) end
  local info = certify(n, request.csr, cluster, kv, txn)
  table.insert(txn.ops, state.put("/node/" .. id, n))
  table.insert(txn.ops, state.put("/name/" .. name, id))
  table.insert(txn.ops, state.put("/fingerprint/" .. request.fingerprint, id))
  table.insert(txn.ops, peers.put(n, info))
  return txn, n
end

-- The txn that gives node @n (with @kv) a raft id that has never voted, and a certificate for that; and its record.
local function renumber(n, kv, request, cluster, cluster_kv)
  local txn = { compare = { state.unchanged(kv) }, ops = {} }
  table.insert(txn.ops, state.delete("/raft/" .. n.raft_node_id))
  n.raft_node_id = take_raft_id(txn, n.node_id)
  n.raft_address, n.remote_address = request.addresses.raft, request.addresses.remote
  n.gossip_address, n.raft_moves = request.addresses.gossip, nil
  certify(n, request.csr, cluster, cluster_kv, txn)
  table.insert(txn.ops, state.put(kv.key, n))
  return txn, n
end

local VIA = { token = " with a token", dev = ", let in by development mode", approval = ", approved",
  policy = ", approved by a policy" }

-- What the event says.
local function told(kind, n, via, from, amendments)
  local what = kind == "create" and ("%s %s joins"):format(n.role, n.name)
    or ("%s comes back as raft id %d"):format(n.name, n.raft_node_id)
  return ("%s from %s%s%s"):format(what, from or "?", VIA[via], amendments or "")
end

-- What the policies say to @request, of which @kind is to become: "create", "renumber", "pend" or "wait". @fields: via,
-- labels, who. Returns the labels and the name that the node is to have, and whether a policy lets it in without a
-- token. They may not change what a node is called that has a name already. Raises.
local function ask_policies(admission, request, kind, view, fields)
  admission:begin()
  local labels = kind == "renumber" and view.node.labels or fields.labels or {}
  local name = kind == "renumber" and view.node.name or request.name
  local input, decision = admission:decide("admit.join", { role = request.role, name = name, address = view.from,
    addresses = request.addresses, services = request.services, version = request.version, labels = labels,
    token = fields.via == "token", approved = fields.via == "approval", returns = kind == "renumber" or nil,
    who = fields.who or { kind = "certificate" } })
  if kind ~= "renumber" then
    name, labels = assert(values.check_name(input.name)), input.labels
    assert(values.check_labels(labels))
  end
  return labels, name, decision.approve == true
end

-- The txn that lets @request in as @kind ("create" or "renumber") for the reason @via, and the node's record.
-- @admission: what the policies have said.
local function admission_txn(admission, kind, request, view, kvs, via, labels)
  local txn, n
  if kind == "renumber" then
    txn, n = renumber(view.node, kvs.node, request, view.cluster, kvs.cluster)
  else
    txn, n = create(request, view.cluster, kvs.cluster, labels)
  end
  if kvs.pending then table.insert(txn.ops, state.delete(kvs.pending.key)) end
  events.add(txn, { kind = "node.joined", node = n, policies = admission:policies(),
    message = told(kind, n, via, view.from, admission:amendments()) })
  admission:bind(txn)
  return txn, n
end

-- What the joiner gets.
local function welcome(n, cluster)
  return {
    node_id = n.node_id, raft_node_id = n.raft_node_id, name = n.name, role = n.role, cluster_id = cluster.id,
    cluster_name = cluster.name, certificate = n.certificate, ca = cluster.ca, addresses = { raft = n.raft_address,
    remote = n.remote_address, gossip = n.gossip_address }, gossip_keys = keyring.keys(state.get(keyring.KEY)),
    managers = members.addresses(assert(state.managers()), assert(raft.status()).leader), dev = cluster.dev or nil,
  }
end

local function waiting(record, cluster)
  return { pending = { id = record.id, fingerprint = record.fingerprint, expires = record.expires },
    cluster_id = cluster.id, cluster_name = cluster.name }
end

-- state.update, one after the other: admissions would only make each other begin again.
local function in_turn(build)
  local deadline = sys.mono_ms() + ADMIT_MS
  local lock <close> = turn:lock(ADMIT_MS)
  if not lock then
    local fresh, err = state.read()
    return nil, not fresh and err or errors.new("busy", "too many ask to join at once", "say it again")
  end
  return state.update(build, { timeout_ms = math.max(1, deadline - sys.mono_ms()) })
end

-- What is refused, known already or waiting is most of what a flood can ask for. It writes nothing, and takes no turn
-- from those who get in: build(true) answers it, or WRITES.
local WRITES = {}

local function update(build)
  local answer, err = state.update(function() return nil, build(true) end)
  if answer ~= WRITES then return answer, err end
  return in_turn(function()
    local answered, txn = build(false)
    return txn, answered
  end)
end

-- A refusal by a policy is told, but not more often than new requests may come.
local function refused_by_policy(err, request, from)
  if errors.is(err) and err.policy then
    engine.note_refusal(err, ("a join of %s %s from %s"):format(request.role, request.name, from or "?"))
  end
end

-- The fingerprint of the key that signed @csr, from outside, and what its subject states. nil, err.
function M.read_csr(csr)
  if type(csr) ~= "string" or #csr > CSR_MAX then return invalid("csr is missing or too long") end
  local fingerprint, states = crypto.csr_check(csr)
  if not fingerprint then return invalid("the certificate request is damaged: " .. states.message) end
  return fingerprint, states
end

-- Serves one request (from check): 200 and the welcome, or 202 and what it waits for. nil, err.
function M.serve(request, from)
  local fingerprint, states = M.read_csr(request.csr)
  if not fingerprint then return nil, states end
  request.fingerprint, request.states = fingerprint, states
  local limited, admission = false, engine.admission()
  local wanted = request.name
  local made, err = update(function(peek)
    request.name = wanted
    local now = sys.now()
    local view, kvs = look(request, from)
    local decision = assert(M.decide(request, view, now))
    local kind = decision.kind
    local replace = kind == "existing" and view.node.issuer and view.node.issuer ~= pki.signer(view.cluster)
    if kind == "existing" and not replace then return { n = view.node, cluster = view.cluster } end
    if kind == "wait" and not engine.has "admit.join" then
      return { record = decision.record, cluster = view.cluster }
    end
    if kind == "pend" and not limited and not limit:allow(from or "?", sys.mono_ms() / 1000) then
      errors.raise("busy", "too many requests to join from this address", "wait half a minute, or join with a token")
    end
    limited = true
    local labels, name, approved
    if not replace then
      labels, name, approved = ask_policies(admission, request, kind, view, { via = decision.via,
        labels = view.token and view.token.labels })
      if approved and (kind == "pend" or kind == "wait") then
        assert(check_address(request, view))
        kind, decision = assert(kind_of(request, view)), { via = "policy" }
      end
    end
    if kind == "wait" then return { record = decision.record, cluster = view.cluster } end
    if peek then return WRITES end
    if replace then -- it was signed by a CA that is on its way out, or gone
      local txn = { compare = { state.unchanged(kvs.node) }, ops = {} }
      certify(view.node, request.csr, view.cluster, kvs.cluster, txn)
      table.insert(txn.ops, state.put(kvs.node.key, view.node))
      return { n = view.node, cluster = view.cluster }, txn
    end
    if kind == "pend" then
      local key = pending.key(fingerprint)
      local before = kvs.pending and state.unchanged(kvs.pending) or state.absent(key)
      local txn = { compare = { before, { prefix = "/pending/", count = view.pending_count } },
        ops = { state.put(key, decision.record) } }
      admission:bind(txn)
      return { record = decision.record, cluster = view.cluster, new = true }, txn
    end
    request.name = name
    local txn, n = admission_txn(admission, kind, request, view, kvs, decision.via, labels)
    if decision.via == "token" then
      table.insert(txn.compare, state.unchanged(kvs.token))
      if view.token.uses then table.insert(txn.ops, state.put(kvs.token.key, token.used(view.token))) end
    end
    return { n = n, cluster = view.cluster, new = true, via = decision.via }, txn
  end)
  if not made then
    refused_by_policy(err, request, from)
    return nil, err
  end
  if made.record then
    if made.new then
      log.info(("join: request %s from %s waits for approval"):format(made.record.id, from or "?"))
    end
    return 202, waiting(made.record, made.cluster)
  end
  if made.new then
    log.info(("join: %s %s (%s) from %s%s"):format(made.n.role, made.n.name, made.n.node_id, from or "?",
      (made.via == "dev" or made.via == "policy") and VIA[made.via] or ""))
  end
  return 200, welcome(made.n, made.cluster)
end

-- Lets a waiting request in. @opts: fingerprint (required), name, labels, who. nil, err.
function M.approve(id, opts)
  local admission = engine.admission()
  local asked
  local answer, err = in_turn(function()
    local kv = pending.find(id)
    local record = kv.value
    assert(pending.confirm(record, opts.fingerprint))
    local request = { role = record.role, csr = record.csr, fingerprint = record.fingerprint, name = opts.name or
      record.name, named = opts.name ~= nil or record.named, addresses = record.addresses, services = record.services,
      version = record.version }
    local view, kvs = look(request, record.from)
    local kind = assert(kind_of(request, view))
    assert(check_address(request, view))
    if kind ~= "create" and (opts.name or next(opts.labels or {})) then
      errors.raise("invalid", ("%s is a node already, which keeps its name and its labels"):format(view.node.name),
        "approve it without --name and --label")
    end
    local txn, n
    if kind == "existing" then
      txn, n = { compare = {}, ops = { state.delete(kv.key) } }, view.node
    else
      asked = request
      local labels, name = ask_policies(admission, request, kind, view, { via = "approval", labels = opts.labels,
        who = opts.who or { kind = "control" } })
      request.name = name
      txn, n = admission_txn(admission, kind, request, view, kvs, "approval", labels)
    end
    table.insert(txn.compare, state.unchanged(kv))
    return txn, { node_id = n.node_id, raft_node_id = n.raft_node_id, name = n.name, role = n.role,
      fingerprint = n.fingerprint }
  end)
  if not answer and asked then refused_by_policy(err, asked, "a person's approval") end
  if not answer then return nil, err end
  return answer
end

-- A fresh certificate for the node whose key signed @csr: the same key, role and raft id as the state has. nil, err.
function M.renew(csr)
  local fingerprint, err = M.read_csr(csr)
  if not fingerprint then return nil, err end
  return state.update(function()
    local owner = state.text("/fingerprint/" .. fingerprint)
    local n, kv
    if owner then n, kv = state.get("/node/" .. owner) end
    if not n then errors.raise("denied", "no node of this cluster has this key", "it was removed: join again") end
    local cluster, cluster_kv = assert(state.cluster())
    local txn = { compare = { state.unchanged(kv) }, ops = {} }
    certify(n, csr, cluster, cluster_kv, txn)
    table.insert(txn.ops, state.put(kv.key, n))
    return txn, { certificate = n.certificate, ca = cluster.ca, expires = n.certificate_expires }
  end)
end

return M
