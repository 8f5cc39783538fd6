-- Join tokens: SYMTKN-1-<sha256 of the CA certificate, base36>-<secret of 128 bits, base36>.
-- The state knows only the hash of the secret.
local cidr = require "symphony.cluster.cidr"
local crypto = require "sym.crypto"
local errors = require "symphony.errors"
local json = require "symphony.json"
local values = require "symphony.cluster.values"

local M = {}

local PREFIX = "SYMTKN-"
local CA_CHARS, SECRET_CHARS = 50, 25
local CA_BYTES, SECRET_BYTES = 32, 16
local LENGTH = #PREFIX + 2 + CA_CHARS + 1 + SECRET_CHARS
M.LENGTH = LENGTH

M.ROLES = { manager = true, worker = true }
M.CIDRS_MAX = 32

-- @digest: raw sha256 of the CA certificate; @secret: 16 bytes.
function M.make(digest, secret)
  return ("%s1-%s-%s"):format(PREFIX, crypto.base36(digest), crypto.base36(secret))
end

-- A fresh token for the CA with this digest (hex). Returns its text and the hash under which it is kept.
function M.generate(ca_digest_hex)
  local secret = crypto.random(SECRET_BYTES)
  return M.make(crypto.unhex(ca_digest_hex), secret), M.hash(secret)
end

function M.hash(secret)
  return crypto.hex(crypto.sha256(secret))
end

local HINT = "copy the whole line that `manager init` or `token create` printed"

local function bad(why)
  return nil, errors.new("invalid", "this is no token: " .. why, HINT)
end

-- Hostile text to {ca = raw sha256, secret = 16 bytes}; nil, err that tells a truncated token from something else.
function M.parse(text)
  if type(text) ~= "string" or text == "" then return bad("it is empty") end
  if #text > 4 * LENGTH then return bad(("it has %d characters, a token has %d"):format(#text, LENGTH)) end
  text = text:match("^%s*(.-)%s*$")
  local upper = text:upper()
  if upper:sub(1, #PREFIX) ~= PREFIX then
    if #upper > 0 and #upper < #PREFIX and PREFIX:sub(1, #upper) == upper then
      return bad(("it is truncated: %d of %d characters"):format(#text, LENGTH))
    end
    return bad("it does not begin with " .. PREFIX .. "1-")
  end
  local version, rest = upper:match("^" .. PREFIX:gsub("%-", "%%-") .. "(%d*)(.*)$")
  if rest == "" then return bad(("it is truncated: %d of %d characters"):format(#text, LENGTH)) end
  if version ~= "1" then
    return bad(("its version is \"%s\", this symphony knows version 1"):format(version:sub(1, 8)))
  end
  local body = rest:match("^%-(.*)$")
  if not body or body:find("[^0-9A-Z%-]") then return bad("it has a character that does not belong there") end
  if #text < LENGTH then return bad(("it is truncated: %d of %d characters"):format(#text, LENGTH)) end
  if #text > LENGTH then return bad(("it has %d characters, a token has %d"):format(#text, LENGTH)) end
  local ca, secret = body:match("^(%w+)%-(%w+)$")
  if not ca or #ca ~= CA_CHARS then return bad("its parts do not have the right lengths") end
  local digest, raw = crypto.unbase36(ca, CA_BYTES), crypto.unbase36(secret, SECRET_BYTES)
  if not digest or not raw then return bad("a character in it is wrong") end
  return { ca = digest, secret = raw }
end

-- What a token with these options is in the state. @options: role, ttl (seconds or false: never), uses, labels, cidrs.
function M.record(hash, options, now)
  return {
    id = hash:sub(1, 10),
    role = options.role,
    expires = options.ttl and math.floor(now) + options.ttl or nil,
    uses = options.uses,
    labels = options.labels or {},
    cidrs = json.array(options.cidrs),
    created = math.floor(now),
  }
end

-- Options from outside, checked; nil, err.
function M.check_options(options)
  if not M.ROLES[options.role] then
    return nil, errors.new("invalid", ("there is no role \"%s\""):format(tostring(options.role):sub(1, 40)),
      "roles of tokens: manager, worker")
  end
  local uses = options.uses
  if uses ~= nil and (math.type(uses) ~= "integer" or uses < 1 or uses > 1000000) then
    return nil, errors.new("invalid", "uses is a number from 1 to 1000000")
  end
  local ok, err = values.check_labels(options.labels or {})
  if not ok then return nil, err end
  local cidrs = options.cidrs or {}
  if type(cidrs) ~= "table" then return nil, errors.new("invalid", "cidrs is a list of CIDR blocks") end
  if #cidrs > M.CIDRS_MAX then return nil, errors.new("invalid", ("at most %d CIDR blocks"):format(M.CIDRS_MAX)) end
  for _, text in ipairs(cidrs) do
    if not cidr.parse(text) then
      return nil, errors.new("invalid", ("\"%s\" is no CIDR block"):format(tostring(text):sub(1, 64)),
        "for example 10.0.0.0/8, 192.168.1.7 or fd00::/8; bits behind the prefix are zero")
    end
  end
  return true
end

-- May a node that calls from @addr join with this record as @role at @now? true; nil, err.
function M.check(record, role, addr, now)
  if record == nil then
    return nil, errors.new("denied", "the cluster does not know this token: it was removed, or it is mistyped",
      "`symphony token create` on a manager makes a new one")
  end
  if record.role ~= role then
    return nil, errors.new("denied", ("this token is for the role %s, not for %s"):format(record.role, role),
      ("`symphony token create --role %s` on a manager makes the right one"):format(role))
  end
  if record.expires and now >= record.expires then
    return nil, errors.new("expired", "this token has expired " .. values.format_expiry(record.expires, now):match(
      "expired (.*)$"), "`symphony token create` on a manager makes a new one")
  end
  if record.uses and record.uses < 1 then
    return nil, errors.new("denied", "this token is used up", "`symphony token create` on a manager makes a new one")
  end
  if record.cidrs and #record.cidrs > 0 then
    local allowed = false
    for _, text in ipairs(record.cidrs) do
      local net = cidr.parse(text)
      allowed = allowed or (net and addr and cidr.contains(net, addr)) or false
    end
    if not allowed then
      return nil, errors.new("denied", ("this token may not be used from %s"):format(addr or "here"),
        "it is limited to " .. table.concat(record.cidrs, ", "))
    end
  end
  return true
end

-- The record after one use.
function M.used(record)
  local after = {}
  for k, v in pairs(record) do after[k] = v end
  if after.uses then after.uses = after.uses - 1 end
  return after
end

return M
