--- A manager's C side in plain Lua, on top of spec.unit.fake: files, keys and certificates, the store, raft and the
--- node, all in memory. Require it before any module of symphony.

-- busted forgets loaded modules between files; luv, loaded a second time, would use the loop that went with the first.
local registry = debug.getregistry()
registry["symphony.luv"] = registry["symphony.luv"] or require "luv"
package.loaded.luv = registry["symphony.luv"]

local fake = require "spec.unit.fake"

local M = { now = 1700000000 }
for k, v in pairs(fake) do M[k] = v end

local function err(code, message) return { code = code, message = message or code } end

-- Text and digests ------------------------------------------------------------------------------------------------

local crypto = package.loaded["sym.crypto"]

-- 32 bytes that differ for different texts; no cryptography.
local function digest(text)
  local out = {}
  for lane = 1, 4 do
    local h = 0xcbf29ce484222325 + lane * 0x9e3779b97f4a7c15
    for i = 1, #text do h = (h ~ text:byte(i)) * 0x100000001b3 end
    h = h ~ (h >> 29)
    out[lane] = string.pack(">i8", h * 0x2545f4914f6cdd1d ~ (h >> 17))
  end
  return table.concat(out)
end

local DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"

local function base36(bytes)
  local width, number = math.ceil(#bytes * 8 / math.log(36, 2)), { bytes:byte(1, -1) }
  local out = {}
  for i = width, 1, -1 do
    local rest = 0
    for j = 1, #number do
      local v = rest * 256 + number[j]
      number[j], rest = v // 36, v % 36
    end
    out[i] = DIGITS:sub(rest + 1, rest + 1)
  end
  return table.concat(out)
end

local function unbase36(text, n)
  local number = {}
  for i = 1, n do number[i] = 0 end
  for c in text:lower():gmatch(".") do
    local digit = DIGITS:find(c, 1, true)
    if not digit then return nil, err("invalid", "not base 36") end
    local carry = digit - 1
    for j = n, 1, -1 do
      local v = number[j] * 36 + carry
      number[j], carry = v & 255, v >> 8
    end
    if carry > 0 then return nil, err("invalid", "too large") end
  end
  if #base36(("\0"):rep(n)) ~= #text then return nil, err("invalid", "wrong width") end
  return string.char(table.unpack(number))
end

local B32 = "0123456789abcdefghijklmnopqrstuv"
local function base32(bytes)
  local out, acc, bits = {}, 0, 0
  for i = 1, #bytes do
    acc, bits = (acc << 8 | bytes:byte(i)) & 0xffffff, bits + 8
    while bits >= 5 do
      bits = bits - 5
      local d = acc >> bits & 31
      out[#out + 1] = B32:sub(d + 1, d + 1)
    end
  end
  if bits > 0 then
    local d = acc << (5 - bits) & 31
    out[#out + 1] = B32:sub(d + 1, d + 1)
  end
  return table.concat(out)
end

local counter = 0
crypto.random = function(n)
  counter = counter + 1
  return (digest("random" .. counter) .. digest("more" .. counter)):sub(1, n)
end
crypto.sha256, crypto.base36, crypto.unbase36, crypto.base32 = digest, base36, unbase36, base32
crypto.unhex = function(text)
  if not text:match("^%x*$") or #text % 2 ~= 0 then return nil, err("invalid", "not hex") end
  return (text:gsub("..", function(h) return string.char(tonumber(h, 16)) end))
end
crypto.equal = function(a, b) return a == b end

-- Keys and certificates as readable text: KEY <name>, CSR <name> <cn>, CERT <json> and a newline.
local function key_of(name)
  return {
    name = name,
    pem = function() return "KEY " .. name end,
    fingerprint = function() return crypto.hex(digest("key " .. name)) end,
  }
end
crypto.key_generate = function()
  counter = counter + 1
  return key_of("k" .. counter)
end
crypto.key_load = function(pem)
  local name = pem:match("^KEY (%w+)$")
  if not name then return nil, err("invalid", "not a private key") end
  return key_of(name)
end
crypto.csr = function(key, cn) return ("CSR %s %s"):format(key.name, cn) end
crypto.csr_check = function(pem)
  local name, cn = pem:match("^CSR (%w+) (.*)$")
  if not name then return nil, err("invalid", "not a request") end
  return key_of(name):fingerprint(), cn
end
local function cert(fields)
  return "CERT " .. require("symphony.json").encode(fields) .. "\n"
end
crypto.ca_new = function(key, o, from, to)
  return cert { cn = "ca", ou = "ca", o = o, key = key.name, issuer = key.name, not_before = from, not_after = to,
    is_ca = true, is_server = false }
end
crypto.cert_sign = function(ca_key, _, csr, spec)
  local name = csr:match("^CSR (%w+) ")
  if not name then return nil, err("invalid", "not a request") end
  counter = counter + 1
  return cert { cn = spec.cn, ou = spec.ou, o = spec.o, key = name, issuer = ca_key.name, not_before = spec.not_before,
    not_after = spec.not_after, is_ca = false, is_server = spec.server or false, raft_id = spec.raft_id,
    hosts = spec.hosts, serial = tostring(counter) }
end
crypto.cert_cross_sign = function(ca_key, _, of)
  local doc = crypto.cert_info(of)
  return cert { cn = doc.cn, ou = doc.ou, o = doc.o, key = doc.key, issuer = ca_key.name, not_before = doc.not_before,
    not_after = doc.not_after, is_ca = true, is_server = false }
end
crypto.cert_split = function(pem)
  local out = {}
  for line in pem:gmatch("CERT [^\n]*\n") do out[#out + 1] = line end
  if #out == 0 then return nil, err("invalid", "not a certificate") end
  return out
end
crypto.cert_hosts = function(pem) return crypto.cert_info(pem).hosts or {} end
crypto.cert_info = function(pem)
  pem = pem:match("^CERT [^\n]*\n") or ""
  local doc = require("symphony.json").decode(pem:match("^CERT (.*)\n$") or "")
  if not doc then return nil, err("invalid", "not a certificate") end
  doc.digest, doc.fingerprint = crypto.hex(digest(pem)), key_of(doc.key):fingerprint()
  doc.serial, doc.public = doc.serial or "0", "key " .. doc.key
  return doc
end
crypto.cert_check_key = function(pem, key)
  if crypto.cert_info(pem).key == key.name then return true end
  return nil, err("invalid", "another key")
end
crypto.cert_check_issuer = function(pem, ca)
  for _, one in ipairs(crypto.cert_split(ca) or {}) do
    if crypto.cert_info(pem).issuer == crypto.cert_info(one).key then return true end
  end
  return nil, err("invalid", "another CA")
end

-- The machine ---------------------------------------------------------------------------------------------------------

local sys = package.loaded["sym.sys"]
M.files, M.folders = {}, {}
M.options = {}

sys.now = function() return M.now end
sys.options = function() return M.options end
sys.hostname = function() return "host.example.org" end
sys.default_address = function() return "10.0.0.5" end
sys.uid = function() return 0 end
sys.release_memory = function() end
sys.read_file = function(path)
  if M.files[path] then return M.files[path] end
  return nil, err("not_found", path .. ": No such file or directory")
end
sys.write_file = function(path, text)
  if M.write_fails then return nil, err("no_space", path .. ": No space left on device") end
  M.files[path] = text
  return true
end
sys.mkdir = function(path)
  if not M.folders[path] then
    counter = counter + 1
    M.folders[path] = "folder-" .. counter
  end
  return true
end
sys.folder_identity = function(path)
  if M.folders[path] then return M.folders[path] end
  return nil, err("not_found", path .. ": No such file or directory")
end
sys.remove = function(path)
  M.files[path] = nil
  return true
end
sys.remove_tree = function(path)
  M.folders[path] = nil
  if path:match("/state$") then
    for key in pairs(M.kvs) do M.kvs[key] = nil end
    M.revision = 0
  end
  for name in pairs(M.files) do
    if name:sub(1, #path + 1) == path .. "/" then M.files[name] = nil end
  end
  return true
end
sys.stat = function(path)
  if M.files[path] then return { type = "file", uid = 0, mode = 384 } end
  return nil, err("not_found")
end

-- The state -----------------------------------------------------------------------------------------------------------

M.kvs, M.revision = {}, 0
M.results = {} -- of txns with an id
local watches = {}

--- A snapshot came: every watch ends, since its history is gone.
function M.compact()
  local ended = {}
  for w in pairs(watches) do ended[#ended + 1] = w end
  for _, w in ipairs(ended) do
    watches[w] = nil
    w.fn(err("compacted"), nil)
  end
end

--- How many watches are open.
function M.watching()
  local n = 0
  for _ in pairs(watches) do n = n + 1 end
  return n
end

local function sorted(prefix)
  local keys = {}
  for key in pairs(M.kvs) do
    if key:sub(1, #prefix) == prefix then keys[#keys + 1] = key end
  end
  table.sort(keys)
  return keys
end

local function copy(kv)
  return { key = kv.key, value = kv.value, create_revision = kv.create_revision, mod_revision = kv.mod_revision }
end

M.module("store", {
  get = function(key) return M.kvs[key] and copy(M.kvs[key]) or nil end,
  list = function(prefix, opts)
    local out, more = {}, false
    for _, key in ipairs(sorted(prefix)) do
      if not opts.after or key > opts.after then
        if #out >= (opts.limit or math.huge) then more = true else out[#out + 1] = copy(M.kvs[key]) end
      end
    end
    return out, more
  end,
  revision = function() return M.revision end,
  result = function(id, seq) return M.results[id .. "/" .. (seq or 0)] end,
  keys = function() return #sorted("") end,
  watch = function(prefix, _, fn)
    local w = { prefix = prefix, fn = fn }
    watches[w] = true
    return { close = function() watches[w] = nil end }
  end,
})

local function holds(c)
  local kv = c.key and M.kvs[c.key]
  if c.absent then return kv == nil end
  if c.prefix then
    local keys = sorted(c.prefix)
    if c.count then return #keys == c.count end
    for _, key in ipairs(keys) do
      if M.kvs[key].mod_revision > c.revision then return false end
    end
    return true
  end
  if not kv then return false end
  if c.value then return kv.value == c.value end
  if c.mod_revision then return kv.mod_revision == c.mod_revision end
  return kv.create_revision == c.create_revision
end

--- Applies a txn as the store does.
function M.apply(txn)
  assert(#(txn.ops or {}) <= 128 and #(txn.compare or {}) <= 192, "a txn that no store takes")
  for i, c in ipairs(txn.compare or {}) do
    if not holds(c) then return { status = "conflict", failed = i, revision = M.revision } end
  end
  local events = {}
  if #(txn.ops or {}) > 0 then M.revision = M.revision + 1 end
  for _, op in ipairs(txn.ops or {}) do
    local key, old = op.put or op.delete, M.kvs[op.put or op.delete]
    if op.put then
      assert(type(op.value) == "string", "a value that is no text: " .. key)
      M.kvs[key] = { key = key, value = op.value, create_revision = old and old.create_revision or M.revision,
        mod_revision = M.revision }
      events[#events + 1] = { key = key, value = op.value, revision = M.revision }
    elseif old then
      M.kvs[key] = nil
      events[#events + 1] = { key = key, deleted = true, revision = M.revision }
    end
  end
  for w in pairs(watches) do
    local seen = {}
    for _, e in ipairs(events) do
      if e.key:sub(1, #w.prefix) == w.prefix then seen[#seen + 1] = e end
    end
    if #seen > 0 then w.fn(nil, seen) end
  end
  return { status = "applied", revision = M.revision }
end

-- Policies ------------------------------------------------------------------------------------------------------------

local HOOKS = { ["admit.join"] = true, ["admit.change"] = true, ["node.down"] = true, ["node.up"] = true,
  ["leader.change"] = true }
local UNITS = { s = 1, m = 60, h = 3600, d = 86400 }

local function period(hook)
  local n, unit = tostring(hook):match("^every%.(%d+)([smhd])$")
  return n and tonumber(n) > 0 and math.tointeger(tonumber(n)) * UNITS[unit] or nil
end

M.module("rules", {
  HOOKS_MAX = 32, GLOBS_MAX = 16, GLOB_MAX = 64, period = period,
  is_hook = function(hook)
    return HOOKS[hook] or tostring(hook):find("^place%.%l[%l%d%-]*$") ~= nil or period(hook) ~= nil
  end,
  glob = function(glob, text)
    local pattern = glob:gsub("[%^%$%(%)%%%.%[%]%+%-]", "%%%0"):gsub("%*", ".*"):gsub("%?", ".")
    return text:find("^" .. pattern .. "$") ~= nil
  end,
})

-- Raft ----------------------------------------------------------------------------------------------------------------

--- raft.status()'s answer, for the test to change; changes: what add, assign, remove and transfer were called with.
M.status, M.changes = nil, {}
--- What locate was called with.
M.located = {}
M.read_error, M.submit_error, M.reads = nil, nil, 0
--- Called before each txn is applied: a test slips something in between.
M.before_submit = nil

local function server(id)
  for i, s in ipairs(M.status.servers) do
    if s.id == id then return s, i end
  end
end

local function change(what, fn)
  return function(id, a, b)
    local cb = b or a
    M.changes[#M.changes + 1] = b and ("%s %d %s"):format(what, id, a) or ("%s %d"):format(what, id)
    if M.change_error then return cb(M.change_error) end
    fn(id, a)
    cb(nil)
  end
end

M.module("raft", {
  status = function()
    if not M.status then return nil, err("closed", "the node is not started") end
    return M.status
  end,
  read = function(_, cb)
    M.reads = M.reads + 1
    cb(M.read_error)
  end,
  submit = function(txn, _, cb)
    if M.submit_error then return cb(M.submit_error) end
    if M.before_submit then M.before_submit(txn) end
    local at = txn.id and txn.id .. "/" .. (txn.seq or 0)
    local known = at and M.results[at]
    if known then
      local again = { repeated = true }
      for k, v in pairs(known) do again[k] = v end
      return cb(nil, again)
    end
    local result = M.apply(txn)
    if at then M.results[at] = result end
    cb(nil, result)
  end,
  locate = function(id, address, moves)
    M.located[#M.located + 1] = ("%d %s %d"):format(id, address, moves)
    return true
  end,
  add = change("add", function(id, address)
    table.insert(M.status.servers, { id = id, address = address, role = "spare", up = true })
  end),
  assign = change("assign", function(id, role) server(id).role = role end),
  remove = change("remove", function(id) table.remove(M.status.servers, (select(2, server(id)))) end),
  transfer = change("transfer", function(id)
    M.status.leader = id == 0 and M.status.servers[#M.status.servers].id or id
    M.status.state = M.status.leader == M.status.id and "leader" or "follower"
  end),
})

-- The node ------------------------------------------------------------------------------------------------------------

M.started, M.starts, M.quits = false, {}, {}
M.hooks, M.dropped = {}, {}

M.module("node", {
  quorum_hint = "`symphony manager recover`",
  started = function() return M.started end,
  start = function(opts)
    if M.start_error then return nil, M.start_error end
    M.started = true
    M.starts[#M.starts + 1] = opts
    if opts.bootstrap then
      M.status = M.single(opts.raft_id, opts.raft_address)
    elseif not M.status then
      M.status = M.single(opts.raft_id, opts.raft_address)
      M.status.servers, M.status.state, M.status.leader = {}, "follower", 0
    end
    return { raft_port = 1, remote_port = 2 }
  end,
  stop = function(cb)
    M.started, M.status = false, nil
    cb(nil)
  end,
  recover = function(opts)
    assert(not M.started, "recover while started")
    M.recovered = opts
    M.status = M.single(opts.raft_id, opts.raft_address)
    return true
  end,
  on_change = function(fn) M.hooks.change = fn end,
  on_removed = function(fn) M.hooks.removed = fn end,
  on_request = function() end,
  set_tls = function(c) M.tls = c return true end,
  drop_peer = function(id) M.dropped[#M.dropped + 1] = id end,
  on_quit = function(fn) M.hooks.quit = fn end,
  kv_policies = function(revision) M.kv_policies = revision or "lua" end,
  kv_heard = function() return 0 end,
  on_kv_failed = function(fn) M.hooks.kv_failed = fn end,
  quit = function(code) M.quits[#M.quits + 1] = code or 0 end,
})

-- Gossip --------------------------------------------------------------------------------------------------------------

--- M.gossip: the driver that is open: {options, ring, peers, told = {address, meta}, fns = {event, probe}, members};
--- nil when there is none.
M.opened, M.gossip_error = 0, nil
M.module("gossip", {
  open = function(options)
    M.opened = M.opened + 1
    if M.gossip_error then return nil, M.gossip_error end
    local d = { options = options, ring = options.keys, peers = {}, told = {}, fns = {}, members_ = {}, probed = {} }
    M.gossip = d
    local g = {}
    function g:keys(list) d.ring = list return true end
    function g:peer(id, spki) d.peers[id] = spki end
    function g:forget(id) d.peers[id] = nil end
    function g:update(told) d.told = told return true end
    function g:leave(cb) d.left = true cb(nil) end
    function g:close() if M.gossip == d then M.gossip = nil end end
    function g:export(cursor) return "piece " .. cursor, 0 end
    function g:merge(from, piece) d.merged = { from, piece } return true end
    function g:probe_done(ticket, alive) d.probed[ticket] = alive end
    function g:on_event(fn) d.fns.event = fn end
    function g:on_probe(fn) d.fns.probe = fn end
    function g:member(id) return d.members_[id] end
    function g:members()
      local list = {}
      for _, m in pairs(d.members_) do list[#list + 1] = m end
      return list
    end
    function g:count() return #self:members() + 1 end
    function g:health() return 0 end
    function g:stats() return {} end
    return g
  end,
})

--- answer(opts) -> err, response; what the other side says. HOLD: the answer has not ended, until release(opts, err).
M.answer = nil
M.requests, M.HOLD = {}, {}
local held = {}

function M.release(opts, why, response)
  local cb = held[opts]
  held[opts] = nil
  if cb then cb(why, response) end
end

--- Is the answer to @opts still to end?
function M.is_held(opts)
  return held[opts] ~= nil
end

M.module("http", {
  request = function(opts, cb)
    M.requests[#M.requests + 1] = opts
    local why, response = M.answer(opts)
    if why == M.HOLD then held[opts] = cb else cb(why, response) end
    return { cancel = function() M.release(opts, err("canceled")) end }
  end,
})

--- raft's status of a cluster of one.
function M.single(id, address)
  return { state = "leader", id = id, leader = id, term = 1, last_index = 1, last_term = 1, commit_index = 1,
    applied_index = 1,
    snapshot_index = 0, log_bytes = 100, has_quorum = true, changing = false, no_space = false,
    servers = { { id = id, address = address, role = "voter", up = true, is_self = true } } }
end

--- As after the daemon's start: nothing there but the options.
function M.reset()
  for _, t in ipairs { M.files, M.folders, M.kvs, M.changes, M.starts, M.quits, M.logged, M.requests, M.dropped,
    held, M.located } do
    for k in pairs(t) do t[k] = nil end
  end
  for w in pairs(watches) do watches[w] = nil end
  M.revision, M.status, M.started, M.answer, M.results = 0, nil, false, nil, {}
  M.read_error, M.submit_error, M.start_error, M.change_error, M.before_submit, M.write_fails = nil, nil, nil, nil,
    nil, nil
  M.recovered, M.gossip, M.gossip_error, M.opened = nil, nil, nil, 0
  M.now = 1700000000
  M.options = { role = "manager", config_dir = "/dir", raft_port = 15760, remote_port = 27242, gossip_port = 37065,
    gossip_given = true, bind_addr = "127.0.0.1", advertise_addr = "127.0.0.1" }
  local identity = require "symphony.cluster.identity"
  identity.me, identity.tls, identity.trouble = nil, nil, nil
end

--- A fresh request of the key @name to join the cluster that was made.
function M.csr(name)
  local cluster = require("symphony.cluster.state").cluster()
  if not cluster then return ("CSR %s x"):format(name) end
  local ca = cluster.ca
  return crypto.csr({ name = name }, require("symphony.cluster.statement").make(
    crypto.unhex(crypto.cert_info(ca).digest), M.now))
end

--- Another manager in the state: its record.
function M.add_node(id)
  local state = require "symphony.cluster.state"
  local n = { node_id = "0member" .. id, raft_node_id = id, name = "m" .. id, role = "manager", fingerprint = "f" .. id,
    raft_address = "h:" .. id, remote_address = "r:" .. id, gossip_address = "g:" .. id, version = "1.2.3",
    labels = {} }
  M.apply { ops = { state.put("/node/" .. n.node_id, n), state.put("/raft/" .. id, n.node_id),
    state.put("/name/" .. n.name, n.node_id), state.put("/fingerprint/" .. n.fingerprint, n.node_id) } }
  return n
end

--- And in raft. @role: "voter" unless it is given.
function M.add_member(id, role, down)
  local n = M.add_node(id)
  table.insert(M.status.servers, { id = id, role = role or "voter", up = not down, address = n.raft_address })
  return n
end

--- Lets no task of the membership live on: the loop would never run dry.
function M.quiet()
  require("symphony.cluster.lifecycle").deactivate()
end

--- The body of a test as a task, after which nothing is left running.
function M.task(body)
  return function()
    M.run(function()
      local ok, what = xpcall(body, function(e)
        return type(e) == "table" and e or debug.traceback(e, 2)
      end)
      M.quiet()
      if not ok then error(what, 0) end
    end)
  end
end

--- A cluster of this one manager, made by init; returns init's answer. What its leader would write by and by, about
--- nodes and keys, it leaves to the test to ask for.
function M.make(opts)
  local starts = {}
  for _, name in ipairs { "status", "rotation" } do
    local part = require("symphony.cluster." .. name)
    starts[part], part.start = part.start, function() end
  end
  local answer, more = require("symphony.cluster.init").run(opts or { token_ttl = 3600 })
  for part, start in pairs(starts) do part.start = start end
  if not answer then error(more, 0) end
  return answer, more
end

return M
