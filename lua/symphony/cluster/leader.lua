-- Passing requests on to the leader, with our own certificate, and calling it.
local async = require "symphony.async"
local address = require "symphony.cluster.address"
local basis = require "symphony.cluster.basis"
local errors = require "symphony.errors"
local http = require "sym.http"
local identity = require "symphony.cluster.identity"
local json = require "symphony.json"
local raft = require "sym.raft"
local remote = require "symphony.cluster.remote"
local state = require "symphony.cluster.state"
local sys = require "sym.sys"

local M = {
  patience_ms = 4000, -- for a leader to be there; a write has to answer within five seconds
}

local RETRY_MS = 50
local ANSWER_MS = 20000
local HOPS, FROM, NODE, WHO = "symphony-forwarded", "symphony-from", "symphony-node", "symphony-who" -- and basis.HEADER
local WHO_MAX = 512 -- bytes

-- Where the leader is now: "host:port"; nil when it is not known.
local function whereabouts()
  local status = raft.status()
  if not status or not status.leader or status.leader == 0 then return nil end
  local id = state.text("/raft/" .. status.leader)
  local n = id and state.get("/node/" .. id)
  return n and n.remote_address
end

local function no_leader()
  return errors.new("no_quorum", "no leader is known: no majority of the managers is up and connected",
    state.QUORUM_HINT)
end

-- Was this request passed on to us already? Then we do not pass it on again.
function M.is_forwarded(req)
  return req:header(HOPS) ~= nil
end

-- The address that a request really comes from: a manager that passed it on says so. @who from the router.
function M.origin(req, who)
  if who.kind == "manager" then
    local from = req:header(FROM)
    if from and #from <= 64 then return from end
  end
  return req.peer.unix and "127.0.0.1" or req.peer.addr
end

-- The id of the node for whom the manager @who has passed @req on; nil: it asks for itself.
function M.on_behalf(req, who)
  local id = who.kind == "manager" and M.is_forwarded(req) and req:header(NODE)
  return id and #id <= 64 and id or nil
end

-- A field of @who, from another manager.
local function word(who, name, most)
  local text = who[name]
  return type(text) == "string" and #text <= most and text or nil
end

-- Who asks, as policies are told: {kind = "control" (somebody at the control socket of the manager @name) or
-- "certificate", name, role}. The manager that has passed a request on says who asked it.
function M.asker(req, who)
  if who.kind == "control" then return { kind = "control", name = (identity.me or {}).name } end
  local said = who.kind == "manager" and M.is_forwarded(req) and req:header(WHO)
  local doc = said and #said <= WHO_MAX and json.decode(said)
  if type(doc) == "table" and (doc.kind == "control" or doc.kind == "certificate") then
    return { kind = doc.kind, name = word(doc, "name", 64), role = word(doc, "role", 16) }
  end
  return { kind = "certificate", name = who.node and who.node.name or who.id, role = who.kind }
end

-- A command in this daemon, as policies are told.
function M.here() return { kind = "control", name = (identity.me or {}).name } end

-- May a failed pass be tried again? Only when it surely did not happen. Pure.
function M.again(err, status, doc)
  if err then return err.code == "unreachable" or err.code == "not_found" end
  local code = status == 503 and type(doc) == "table" and type(doc.error) == "table" and doc.error.code
  return code == "not_leader"
end

local function send(request, deadline)
  while true do
    local ok, gone = state.ready() -- who is out, or stopping, will find no leader
    if not ok then return nil, gone end
    local at = whereabouts()
    local tls = identity.tls
    if at and tls then
      local host, port = address.parse(at)
      local response, err = async.await(http.request, { host = host, port = port, role = "manager",
        tls = { ca = tls.ca, cert = tls.cert, key = tls.key }, method = request.method, path = request.path,
        headers = request.headers, body = request.body, timeout_ms = ANSWER_MS, max_body = 16 * 1024 * 1024 })
      local doc = response and response.status == 503 and json.decode(response.body) or nil
      if not M.again(err, response and response.status, doc) then
        if response then return response end
        if err.code == "timeout" or err.code == "closed" then
          return nil, errors.new("outcome_unknown", "the leader gave no answer: " .. err.message,
            "it may or may not have been done: look, then repeat")
        end
        return nil, errors.wrap(err, "the leader at " .. at)
      end
    end
    if sys.mono_ms() >= deadline then return nil, no_leader() end
    async.sleep(RETRY_MS)
  end
end

-- Passes @req on and returns status, body, {ctype}. The router calls this on a follower.
function M.forward(req, _, who)
  if M.is_forwarded(req) then
    errors.raise("not_leader", "this manager does not lead", "ask again: the leadership has just changed hands")
  end
  local path = remote.encode_path(req.path)
  if req.query and req.query ~= "" then path = path .. "?" .. req.query end
  local headers = { [HOPS] = "1", [FROM] = M.origin(req, who), [NODE] = who.node and who.node.node_id,
    [WHO] = json.encode(M.asker(req, who)), [basis.HEADER] = basis.to_header(async.bound()) }
  for _, name in ipairs { "content-type", "idempotency-key", "idempotency-since" } do
    headers[name] = req:header(name)
  end
  local response, err = send({ method = req.method, path = path, headers = headers, body = req.body },
    sys.mono_ms() + M.patience_ms)
  if not response then return nil, err end
  return response.status, response.body
end

-- Calls a route of the leader, which may be this manager. Returns the decoded answer; nil, err.
function M.call(method, path, body)
  local headers = { ["content-type"] = "application/json", [HOPS] = "1", [WHO] = json.encode(M.here()),
    [basis.HEADER] = basis.to_header(async.bound()) }
  local response, err = send({ method = method, path = path, body = body and json.encode(body) or nil,
    headers = headers }, sys.mono_ms() + M.patience_ms)
  if not response then return nil, err end
  local doc = json.decode(response.body or "")
  err = remote.answer_error(response.status, doc, "the leader")
  if err then return nil, err end
  return doc
end

return M
