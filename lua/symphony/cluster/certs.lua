-- Client certificates, for people and programs: issue, list, revoke, and forgetting old ones.
--
-- /client/<name> says which key is good under that name, and for what; /fingerprint/<key> the same the other way round,
-- as "<role> <name>". A certificate is worth what stands there now, and nothing when nothing does.
local crypto = require "sym.crypto"
local errors = require "symphony.errors"
local events = require "symphony.cluster.events"
local pki = require "symphony.cluster.pki"
local state = require "symphony.cluster.state"
local sys = require "sym.sys"
local values = require "symphony.cluster.values"

local M = {}

local PREFIX = "/client/"
local DAY = 86400
local KEEP = DAY     -- an expired one is listed so long
local SWEEP_MAX = 60 -- in one txn
local CSR_MAX = 4096
M.CLIENTS_MAX = 1000
M.ROLES = { reader = true, operator = true }
M.DEFAULT_TTL = 30 * DAY
M.TTL_MAX = 730 * DAY
local RESERVED = { ca = true } -- its file would be the CA's

local function invalid(message, hint)
  return nil, errors.new("invalid", message, hint)
end

-- Is @name one for a client certificate? true; nil, err. Pure.
function M.check_name(name)
  if RESERVED[name] then return invalid(("a client certificate cannot be called %s"):format(name)) end
  local ok, err = values.check_name(name)
  if not ok then return nil, err end
  return true
end

-- Options from outside: {name, role, ttl (seconds), csr, replace}; true; nil, err. Pure.
function M.check(o)
  local ok, err = M.check_name(o.name)
  if not ok then return nil, err end
  if not M.ROLES[o.role] then
    return invalid(("there is no role \"%s\""):format(tostring(o.role):sub(1, 40)),
      "roles of client certificates: reader, operator")
  end
  if math.type(o.ttl) ~= "integer" or o.ttl < 1 or o.ttl > M.TTL_MAX then
    return invalid("a client certificate is good for 1 second to 730 days", "write for example --ttl 12h or --ttl 90d")
  end
  if type(o.csr) ~= "string" or #o.csr > CSR_MAX then return invalid("csr is missing or too long") end
  return true
end

local function key_of(record)
  return "/fingerprint/" .. record.fingerprint
end

-- What is shown of @record. @sign: the digest of the CA that signs now. Pure.
function M.shown(record, sign)
  return { name = record.name, role = record.role, issued = record.issued, expires = record.expires,
    serial = record.serial, fingerprint = record.fingerprint, issuer = record.issuer,
    current_ca = record.issuer == sign }
end

-- The record of a certificate, and the certificate itself. Raises.
local function signed(o, fingerprint, cluster)
  local now = sys.now()
  local ca_key, ca_pem, issuer = assert(pki.load_ca())
  local c = { name = o.name, role = o.role, fingerprint = fingerprint, issued = math.floor(now), issuer = issuer,
    expires = math.min(math.floor(now) + o.ttl, crypto.cert_info(ca_pem).not_after) }
  local certificate = pki.sign_client(ca_key, ca_pem, o.csr, c, cluster.id, now)
  c.serial = crypto.cert_info(certificate).serial
  return c, certificate
end

-- Issues one; options as check() has them. With replace it takes the place of one with that name, which is void then.
-- Returns the record with certificate and ca (PEM, all that are trusted) added; nil, err.
function M.issue(o)
  local ok, err = M.check(o)
  if not ok then return nil, err end
  local fingerprint, why = crypto.csr_check(o.csr)
  if not fingerprint then return invalid("the certificate request is damaged: " .. why.message) end
  return state.update(function()
    local cluster, cluster_kv = assert(state.cluster())
    local before, kv = state.get(PREFIX .. o.name)
    if before and not o.replace and before.expires > sys.now() then
      errors.raise("exists", ("there is a client certificate called %s"):format(o.name),
        "choose another name; or replace it, which makes it void: --force")
    end
    local count = #assert(state.list_raw(PREFIX, { limit = M.CLIENTS_MAX }))
    if not before and count >= M.CLIENTS_MAX then
      errors.raise("too_big", ("there are %d client certificates already"):format(count),
        "`symphony cert revoke` those not needed")
    end
    local owner = state.text("/fingerprint/" .. fingerprint)
    if owner and not (before and before.fingerprint == fingerprint) then
      errors.raise("exists", "this key has a certificate already", "make a new key for each")
    end
    local c, certificate = signed(o, fingerprint, cluster)
    local same = kv and state.unchanged(kv) or state.absent(PREFIX .. o.name)
    local txn = { compare = { state.unchanged(cluster_kv), same }, ops = {} }
    if before and before.fingerprint ~= fingerprint then table.insert(txn.ops, state.delete(key_of(before))) end
    if not owner then table.insert(txn.compare, state.absent(key_of(c))) end
    table.insert(txn.ops, state.put(PREFIX .. c.name, c))
    table.insert(txn.ops, state.put(key_of(c), c.role .. " " .. c.name))
    events.add(txn, { kind = "cert.issued", message = ("a certificate as %s for %s"):format(c.role,
      c.name) })
    local answer = M.shown(c, c.issuer)
    answer.certificate, answer.ca, answer.replaced = certificate, cluster.ca, before ~= nil
    return txn, answer
  end)
end

-- All of them, by name; from local state. nil, err.
function M.list()
  local rows, err = state.list(PREFIX)
  if not rows then return nil, err end
  local cluster, sign
  cluster, err = state.cluster()
  if cluster then sign, err = pki.signer(cluster) end
  if not sign then return nil, err end
  local out = {}
  for i, kv in ipairs(rows) do out[i] = M.shown(kv.value, sign) end
  return out
end

-- From this revision on it is good for nothing. Returns {name, role}; nil, err.
function M.revoke(name)
  return state.update(function()
    local c, kv = state.get(PREFIX .. name)
    if not c then
      errors.raise("not_found", ("no client certificate is called \"%s\""):format(tostring(name):sub(1, 80)),
        "`symphony cert ls` lists them")
    end
    local txn = { compare = { state.unchanged(kv) }, ops = { state.delete(kv.key), state.delete(key_of(c)) } }
    events.add(txn, { kind = "cert.revoked", message = ("the certificate of %s is revoked"):format(c.name) })
    return txn, { name = c.name, role = c.role }
  end)
end

-- Those of @rows (state.list) that are to be forgotten at @now. Pure.
function M.stale(rows, now)
  local out = {}
  for _, kv in ipairs(rows) do
    if kv.value.expires + KEEP < now then out[#out + 1] = kv end
  end
  return out
end

-- Forgets them; the leader calls this now and then.
function M.sweep()
  local rows = state.list(PREFIX)
  local old = rows and M.stale(rows, sys.now()) or {}
  if #old == 0 then return end
  local txn = { compare = {}, ops = {} }
  for i = 1, math.min(#old, SWEEP_MAX) do
    table.insert(txn.compare, state.unchanged(old[i]))
    table.insert(txn.ops, state.delete(old[i].key))
    table.insert(txn.ops, state.delete(key_of(old[i].value)))
  end
  state.submit(txn)
end

return M
