-- POST /v1/join and /v1/renew, for other nodes.
local admit = require "symphony.cluster.admit"
local errors = require "symphony.errors"
local json = require "symphony.json"
local leader = require "symphony.cluster.leader"
local limiter = require "symphony.cluster.limiter"
local state = require "symphony.cluster.state"
local sys = require "sym.sys"
local token = require "symphony.cluster.token"

local M = {}

local BODY_MAX = 32 * 1024

-- A request to join costs a manager the way to the leader, and the leader a round of the quorum; and anybody may send
-- one. By address: refused ones are few, which the leader counts, and all of them not without end, which each manager
-- does. Many that join from one address with a good token are not held up.
local REFUSED = { denied = true, expired = true, invalid = true, busy = true }
local refused, all -- limiters

-- A node needs a certificate now and then, and three at most while the CA is changed; each is a txn. By the node that
-- asks, whose connection has shown who it is, on each manager that it asks and on the leader.
local RENEWALS, RENEWAL_S, RENEWING_MAX = 10, 30, 8192
local renewals

local function seconds() return sys.mono_ms() / 1000 end

-- Does this manager's own state know the token of @req, and is it good?
local function has_good_token(req, from)
  local body = json.decode(req.body or "")
  local parsed = type(body) == "table" and token.parse(body.token)
  local record = parsed and state.get("/token/" .. token.hash(parsed.secret))
  return record and token.check(record, body.role, from, sys.now())
end

local function check_rate(req, who)
  local from, now = leader.origin(req, who), seconds()
  if not (refused:may(from, now) and all:allow(from, now)) and not has_good_token(req, from) then
    errors.raise("busy", "too many requests to join from this address were refused",
      "wait a minute; a token that is good works at once")
  end
end

local function check_renewals(req, who)
  if not renewals:allow(leader.on_behalf(req, who) or who.id, seconds()) then
    errors.raise("busy", "this node has asked for too many certificates", "wait half a minute")
  end
end

local function serve(body, from)
  local status, answer
  local request, err = admit.check(body)
  if request then
    status, answer = admit.serve(request, from)
  else
    answer = err
  end
  if not status and REFUSED[errors.from(answer).code] then refused:done(from, seconds()) end
  return status, answer
end

local function body_of(router, req)
  if #(req.body or "") > BODY_MAX then
    errors.raise("too_big", ("the request has %d bytes; at most %d fit"):format(#req.body, BODY_MAX))
  end
  local body = router.json(req)
  for k, v in pairs(body) do
    if v == json.null then body[k] = nil end
  end
  return body
end

-- A manager that passes it on from a node has looked at that node's connection.
local function check_own_key(router, req, who)
  if who.kind == "manager" and leader.is_forwarded(req) then return end
  local fingerprint, err = admit.read_csr(body_of(router, req).csr)
  if not fingerprint then error(err, 0) end
  if fingerprint ~= req.peer.fingerprint then
    errors.raise("denied", "the certificate request is not of the key of this connection's certificate")
  end
end

function M.routes(router)
  refused, all = limiter.new(20, 3, 1024), limiter.new(200, 0.05, 1024)
  renewals = limiter.new(RENEWALS, RENEWAL_S, RENEWING_MAX)
  router.route("POST", "/v1/join", { auth = { none = true, manager = true }, leader_only = true, timeout_ms = 15000,
    guard = check_rate }, function(req, _, who)
    return serve(body_of(router, req), leader.origin(req, who))
  end)

  router.route("POST", "/v1/renew", { auth = { expired = true, manager = true, worker = true }, leader_only = true,
    guard = function(req, who)
      check_renewals(req, who)
      check_own_key(router, req, who)
    end }, function(req)
    local fresh, err = admit.renew(body_of(router, req).csr)
    if not fresh then return nil, err end
    return 200, fresh
  end)
end

return M
