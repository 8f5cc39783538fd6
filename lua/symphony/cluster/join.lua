-- `manager join` and `block join`, the joiner's side.
--
--   1. the node's key is on disk before anything is asked: saying it again is the same request
--   2. the certificate, the CA and then key.json are written: from there on this is a member, which resumes by itself
--   3. the node starts; a manager waits until raft's configuration holds it, a worker until the cluster says that it
--      is ready
local address = require "symphony.cluster.address"
local advertise = require "symphony.cluster.advertise"
local async = require "symphony.async"
local busy = require "symphony.cluster.busy"
local crypto = require "sym.crypto"
local errors = require "symphony.errors"
local identity = require "symphony.cluster.identity"
local json = require "symphony.json"
local lazy = require "symphony.lazy"
local lifecycle = lazy "symphony.cluster.lifecycle"
local members = lazy "symphony.cluster.members"
local raft = require "sym.raft"
local remote = require "symphony.cluster.remote"
local statement = require "symphony.cluster.statement"
local sys = require "sym.sys"
local token = require "symphony.cluster.token"
local values = require "symphony.cluster.values"
local voters = lazy "symphony.cluster.voters"

local M = {}

M.DEFAULT_PORT = 27242
M.poll_ms = 500 -- until one that waits for its approval asks again, at first
local POLL_MAX_MS = 2000
local ASK_MS = 10000
local SETTLE_S = 60     -- for the configuration to hold us
local PROMOTE_S = 5     -- for a standby that is to vote
local MANAGERS_MAX = 64

-- May this daemon join? @pin: raw sha256 of the CA that a token pins, or nil; @own: is that one of ours, nil if it
-- cannot be told. true; nil, err. Pure.
function M.allowed(me, pin, own)
  if not me or me.phase == "init" then return true end
  if me.removed or me.phase == "leave" then
    return nil, errors.new("removed", ("this node was removed from cluster %s"):format(me.cluster_id),
      identity.rejoin())
  end
  if pin and own == false then
    return nil, errors.new("exists", ("this daemon is a member of another cluster, %s"):format(me.cluster_id),
      ("`symphony %s leave` ends that; or join with a daemon that has another --config-dir"):format(identity.word()))
  end
  return nil, errors.new("exists", ("this daemon is a member of cluster %s already%s"):format(me.cluster_id,
    pin and ", the one of this token" or ""), me.role == "worker" and "`symphony node ls` on a manager shows it"
    or "`symphony manager members` shows it")
end

-- `manager join` is for `symphonyd manager`, and `block join` for `symphonyd block`. @word: of the command. true; nil,
-- err. Pure.
function M.fits(word, own)
  if word == own then return true end
  return nil, errors.new("conflict", ("this daemon is `symphonyd %s`, which does not join as %s"):format(own, word),
    ("`symphony %s join` joins it; or say this at the control socket of a `symphonyd %s`"):format(own, word))
end

-- Is the CA with the digest @pin (raw) one of @bundle? While one takes the place of another there are two. nil, err
-- when one of them is no certificate.
local function is_pinned(bundle, pin)
  local parts, err = crypto.cert_split(bundle)
  if not parts then return nil, err end
  local found = false
  for _, pem in ipairs(parts) do
    local ca, why = crypto.cert_info(pem)
    if not ca then return nil, why end
    found = found or crypto.equal(crypto.unhex(ca.digest), pin)
  end
  return found
end

-- Does what the other side sent hold together? true; nil, err. Pure but for the crypto.
function M.check_welcome(w, key, role, pin)
  local function bad(why)
    return nil, errors.new("protocol", "the answer to the request to join is wrong: " .. why)
  end
  if type(w) ~= "table" then return bad("it is no JSON object") end
  for _, name in ipairs { "node_id", "cluster_id", "name", "role", "certificate", "ca" } do
    if type(w[name]) ~= "string" or #w[name] > 65536 then return bad(name .. " is missing") end
  end
  if type(w.addresses) ~= "table" or type(w.managers) ~= "table" then return bad("addresses are missing") end
  local raft_id = w.raft_node_id
  if role == "manager" and (math.type(raft_id) ~= "integer" or raft_id < 1 or raft_id > 1 << 52) then
    return bad("raft_node_id is missing or out of range")
  end
  if not values.check_name(w.name) then return bad("its name is none") end
  -- This is what key.json will hold.
  for at, text in pairs(w.managers) do
    if math.type(at) ~= "integer" or at > MANAGERS_MAX or not address.valid(text) then
      return bad("its managers are not a list of addresses")
    end
  end
  local info, err = crypto.cert_info(w.certificate)
  if not info then return bad(err.message) end
  local known
  known, err = is_pinned(w.ca, pin)
  if err then return bad(err.message) end
  if not known then return bad("the CA is not the one that was pinned") end
  local ok
  ok, err = crypto.cert_check_issuer(w.certificate, w.ca)
  if ok then ok, err = crypto.cert_check_key(w.certificate, key) end
  if not ok then return bad(err.message) end
  if info.cn ~= w.node_id or info.ou ~= role or info.o ~= w.cluster_id or w.role ~= role then
    return bad("the certificate is not that of the node")
  end
  if info.raft_id ~= w.raft_node_id then return bad("the certificate is for another raft id") end
  return true
end

local function trust(err, pinned)
  if err.code == "unauthenticated" and pinned then
    return errors.new("unauthenticated",
      "the manager there does not belong to the cluster of this token: " .. err.message,
      "use a token of that cluster, or the address of a manager of the token's cluster: that of its remote port, not "
      .. "of its raft port")
  end
  return err
end

-- The digest (raw) of the CA that the manager at @at shows; nil, err. What it answers to who has no certificate is no
-- matter.
local function seen_ca(at)
  local doc, err, response = remote.call { at = at, method = "GET", path = "/v1/version", tls = { trust_any = true },
    role = "manager", timeout_ms = ASK_MS }
  if not doc and (not response or err.code == "protocol") then return nil, err end
  local ca = type(response.ca) == "string" and crypto.cert_info(response.ca)
  if not ca then return nil, errors.new("protocol", ("the manager at %s shows no CA certificate"):format(at)) end
  return crypto.unhex(ca.digest)
end

-- Asks until there is a certificate. @ctx: at, key, body, pin (raw, or nil for a request that a person approves),
-- say(text). Returns the welcome and the pin; nil, err.
local function ask(ctx)
  local pin, told, pause = ctx.pin, nil, M.poll_ms
  if not pin then
    local err
    -- What our key signs is for one CA, and goes to nobody but its managers.
    pin, err = seen_ca(ctx.at)
    if not pin then return nil, err end
  end
  while true do
    ctx.body.csr = crypto.csr(ctx.key, statement.make(pin, sys.now()))
    local doc, status = remote.call { at = ctx.at, method = "POST", path = "/v1/join", body = ctx.body,
      tls = { pin = pin }, role = "manager", timeout_ms = ASK_MS }
    if not doc then return nil, trust(status, ctx.pin) end
    if status ~= 202 then return doc, pin end
    local waiting = type(doc) == "table" and type(doc.pending) == "table" and doc.pending
    -- The id is shown as part of a command to paste.
    if not waiting or type(waiting.id) ~= "string" or not waiting.id:find("^%w+$") or #waiting.id > 64 then
      return nil, errors.new("protocol", "the answer to the request to join cannot be read")
    end
    if told ~= waiting.id then
      told = waiting.id
      local fingerprint = ctx.key:fingerprint()
      ctx.say(("key fingerprint:  %s\nCA fingerprint:   %s\n\nThis request waits for somebody to approve it. On a "
        .. "manager of the cluster:\n\n  symphony node approve %s --fingerprint %s\n\nCompare both lines first: "
        .. "`symphony node pending` shows them there. The request lives for an hour.\n"):format(fingerprint,
        crypto.hex(pin), waiting.id, fingerprint))
    end
    async.sleep(pause)
    pause = math.min(POLL_MAX_MS, pause * 1.1)
  end
end

-- What raft and the state say of us: "member" and how, or what is still missing. Pure.
function M.progress(me, rows, status)
  local role
  for _, s in ipairs(status.servers) do
    if s.id == me.raft_node_id then role = s.role end
  end
  local known, stay, n_voters = false, 0, 0
  for _, m in ipairs(rows) do
    known = known or m.id == me.raft_node_id
    if not m.leaving then stay = stay + 1 end
  end
  for _, s in ipairs(status.servers) do
    if s.role == "voter" then n_voters = n_voters + 1 end
  end
  local answer = { role = role, members = stay, voters = n_voters }
  answer.member = known and (role == "voter" or role == "standby")
  answer.settled = answer.member and (role == "voter" or n_voters >= voters.target(stay))
  return answer
end

local function wait_for_role(me, say)
  local began, said = sys.mono_ms(), false
  local member_at
  while true do
    if me.removed then
      return nil, errors.new("removed", "this manager was removed from the cluster while it joined",
        identity.rejoin())
    end
    local rows, status = members.planned(), raft.status()
    local now = sys.mono_ms()
    if rows and status then
      local p = M.progress(me, rows, status)
      if p.settled then return p end
      if p.member then
        member_at = member_at or now
        if now - member_at > 1000 * PROMOTE_S then return p end
      end
    end
    if not said and now - began > 2000 then
      said = true
      say("The cluster is taking this manager in ...\n")
    end
    if now - began > 1000 * SETTLE_S then
      return nil, errors.new("timeout", ("the cluster has not taken this manager in within %d s"):format(SETTLE_S),
        ("it goes on trying by itself: see `symphony manager status` here, and `manager members` on a manager; the "
        .. "others must reach this one at %s"):format(me.advertise.raft))
    end
    lifecycle.wait_change(50)
  end
end

-- @follows: nobody chose the address.
local function document(welcome, advertised, follows)
  return {
    node_id = welcome.node_id, raft_node_id = welcome.raft_node_id, cluster_id = welcome.cluster_id,
    role = welcome.role, name = welcome.name, starts = 0, advertise = advertised,
    managers = json.array(welcome.managers), removed = false,
    follows = follows and not welcome.dev or nil,
  }
end

-- What differs between the roles: the start of a node that is admitted, and what it waits for then. enter(doc, welcome)
-- and wait(me, say) give true and the answer; nil, err.
local sides = {}

sides.manager = {
  enter = function(doc)
    doc.folder = assert(identity.make_raft_folder())
    return lifecycle.activate(doc)
  end,
  wait = function(me, say)
    local p, err = wait_for_role(me, say)
    if not p then return nil, err end
    return {
      cluster_id = me.cluster_id, node_id = me.node_id, raft_node_id = me.raft_node_id, name = me.name,
      raft_role = p.role, members = p.members, voters = p.voters, tolerates = voters.tolerates(p.voters),
      warning = p.members == 2 and M.TWO or nil,
    }
  end,
}

sides.worker = {
  enter = function(doc, welcome)
    doc.folder = assert(identity.folder_of(doc))
    return require("symphony.cluster.worker").activate(doc, welcome)
  end,
  wait = function(me, say)
    local status, err = require("symphony.cluster.worker").wait_ready(say)
    if not status then return nil, err end
    return { cluster_id = me.cluster_id, node_id = me.node_id, name = me.name, status = status }
  end,
}

M.TWO = "two managers tolerate no failure: if either is lost, the cluster may stop. Join a third one."

-- Everything from the certificate on; also for a join that got so far before and died.
local function enter(welcome, advertised, follows)
  assert(identity.save_tls { ca = welcome.ca, cert = welcome.certificate })
  local ok, err = sides[welcome.role].enter(document(welcome, advertised, follows), welcome)
  if not ok then
    return nil, errors.new(err.code, "this node is admitted, but cannot start: " .. err.message,
      (err.hint and err.hint .. "; " or "") .. "then start the daemon again: it goes on by itself")
  end
  return true
end

-- What a text is good for: an address and a token, checked before anything is asked. nil, err. Pure.
function M.prepare(opts)
  local host, port = address.parse(opts.address, M.DEFAULT_PORT)
  if not host then return nil, port end
  local pin
  if opts.token ~= nil then
    local parsed, err = token.parse(opts.token)
    if not parsed then return nil, err end
    pin = parsed.ca
  end
  if opts.name then
    local ok, err = values.check_name(opts.name)
    if not ok then return nil, err end
  end
  return { at = address.format(host, port), pin = pin }
end

-- Is the CA that a token pins one of ours? nil when that cannot be told.
local function is_own(pin)
  local pem = pin and sys.read_file(identity.path("tls/ca.crt"))
  if pem then return (is_pinned(pem, pin)) end
end

-- @opts: word (of the command: "manager" or a service), address, token, name, advertise. @say(text): progress. Returns
-- the answer of the command; nil, err.
function M.run(opts, say)
  local ready, err
  local role, word = identity.role(), identity.word()
  local ok, misfit = M.fits(opts.word, word)
  if not ok then return nil, misfit end
  ready, err = M.prepare(opts)
  if not ready then return nil, err end
  ok, err = M.allowed(identity.me, ready.pin, is_own(ready.pin))
  if not ok then return nil, err end
  local lock <close>, held_by = busy.take(word .. " join", "end it with Ctrl-C where it was typed")
  if not lock then return nil, held_by end
  if identity.me then
    ok, err = identity.wipe() -- an init that never came to its end
  else
    ok, err = identity.check_unused()
  end
  if not ok then return nil, err end
  local options = advertise.options()
  ok, err = advertise.check_ports(options)
  if not ok then return nil, err end
  local host, implied = advertise.pick(opts.advertise, options, false, sys.default_address)
  if not host then return nil, implied end
  local key
  key, err = identity.node_key()
  if not key then return nil, err end

  local advertised = advertise.of(host, options)
  local name = opts.name or values.name_from(sys.hostname())
  local welcome, pin = ask { at = ready.at, key = key, pin = ready.pin, say = say, body = {
    role = role, services = role == "worker" and json.array { word } or nil, name = name, named = opts.name ~= nil,
    addresses = advertised, implied = implied, version = sys.version, token = opts.token } }
  if not welcome then return nil, pin end
  ok, err = M.check_welcome(welcome, key, role, pin)
  if not ok then return nil, err end
  if welcome.dev and implied then advertised = advertise.on_loopback(advertised) end -- as admit has it

  -- From here on it goes to its end, also when who asked for it has gone.
  local entering = lock:hand_over()
  return async.spawn(function()
    local _ <close> = entering
    local entered, why = enter(welcome, advertised, advertise.follows(opts.advertise, options))
    if not entered then return nil, why end
    return sides[role].wait(identity.me, function(text) pcall(say, text) end)
  end):wait()
end

return M
