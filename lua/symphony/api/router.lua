--- Which function answers a request, and who may ask.
local log = require "sym.log"
local async = require "symphony.async"
local errors = require "symphony.errors"
local json = require "symphony.json"

local M = {}

--- What a handler returns when it has taken the request over and answers by itself.
M.STREAM = {}

local DEADLINE_MS = 30000
local DEFAULT_AUTH = { control = true, manager = true, operator = true }

local routes = {} -- in the order of their registration
local looks       -- the limiter of check_looks

-- "/v1/nodes/{id}" as a Lua pattern, and the names of its parameters. {name*} takes the rest, slashes included.
local function compile(pattern)
  local names = {}
  local text = pattern:gsub("[%^%$%(%)%%%.%[%]%+%-%?]", "%%%0"):gsub("{(%w+)(%*?)}", function(name, rest)
    names[#names + 1] = name
    return rest == "" and "([^/]+)" or "(.+)"
  end)
  return "^" .. text .. "$", names
end

--- Has fn(req, params, who) answer @method of the paths like @pattern; the first route that fits counts. The function
--- returns status, body [, {ctype = content type, extra = header lines}]: a body that is a table goes out as JSON, text
--- as it is. It may raise an error, or return nil, err, or M.STREAM. @opts:
---   auth         who may ask: a set of "control" (the unix socket), "manager", "worker", "operator", "reader",
---                "expired" (a certificate past its time), "none" (no certificate); default control, manager, operator
---   leader_only  a follower passes the request on to the leader
---   guard        guard(req, who), which may raise: asked by whatever manager has the request, before it passes it on
---   timeout_ms   until the answer is there (default 30 s; false: no limit)
--- @who says who asked: {kind = one of the above, id = name in the certificate, node = its record in the state}.
function M.route(method, pattern, opts, fn)
  local text, names = compile(pattern)
  routes[#routes + 1] = {
    method = method,
    pattern = text,
    names = names,
    auth = opts.auth or DEFAULT_AUTH,
    leader_only = opts.leader_only,
    guard = opts.guard,
    timeout_ms = opts.timeout_ms == nil and DEADLINE_MS or opts.timeout_ms,
    fn = fn,
  }
end

--- Forgets all routes (tests).
function M.reset()
  routes, looks = {}, nil
end

local function match(route, path)
  local found = table.pack(path:match(route.pattern))
  if found[1] == nil then
    return nil
  end
  local params = {}
  for i, name in ipairs(route.names) do
    params[name] = found[i]
  end
  return params
end

local function find(req)
  local allowed = {}
  for _, route in ipairs(routes) do
    local params = match(route, req.path)
    if params and route.method == req.method then
      return route, params
    elseif params then
      allowed[#allowed + 1] = route.method
    end
  end
  return nil, allowed
end

--- The request's body, which must be a JSON object; raises "invalid". No body is an empty object.
function M.json(req)
  if not req.body or req.body == "" then
    return {}
  end
  local body, err = json.decode(req.body)
  if err then
    error(err, 0)
  elseif type(body) ~= "table" then
    errors.raise("invalid", "the body must be a JSON object")
  end
  return body
end

-- Who asks ------------------------------------------------------------------------------------------------------------

local function local_record(key)
  local entry, err = require("sym.store").get(key)
  if err then
    error(errors.from(err), 0)
  end
  return entry and json.decode(entry.value)
end

-- Who is out still has a certificate with which a connection begins, and each of its requests would cost a round of the
-- quorum. By the key that is asked for; more than the routes that one may try in a row.
local LOOKS, LOOK_S, STRANGERS_MAX = 100, 0.2, 1024

local function check_looks(key)
  looks = looks or require("symphony.cluster.limiter").new(LOOKS, LOOK_S, STRANGERS_MAX)
  if not looks:allow(key, require("sym.sys").mono_ms() / 1000) then
    errors.raise("busy", "cannot tell so often whether this peer is a member", "say it again in some seconds")
  end
end

-- The record at @key in the state, or nil; one that is no good is looked at twice. This manager may be behind: before
-- it takes a member for a stranger it makes sure.
local function record_of(key, is_good)
  local record = local_record(key)
  if not record or not is_good(record) then
    check_looks(key)
    local _, behind = async.await(require("sym.raft").read, 1500)
    if behind then
      error(errors.wrap(behind, "cannot tell whether this peer is a member"), 0)
    end
    record = local_record(key)
  end
  return record
end

local members, clients -- asked instead of the state

--- Who is who is asked of @nodes(id) from now on, which returns {node_id, role, fingerprint} or nil, and of
--- @people(name), which returns {role, fingerprint} of the client certificate of that name, or nil: for a worker, which
--- has no state.
function M.set_members(nodes, people)
  members, clients = nodes, people
end

local function client_record(name, is_good)
  if members then return clients and clients(name) end
  return record_of("/client/" .. name, is_good)
end

-- A client certificate: the role that the state has for its key.
local function identify_client(peer)
  local function is_good(record) return record.fingerprint == peer.fingerprint end
  local client = client_record(peer.cn, is_good)
  if not client then
    errors.raise("denied", "this client certificate was revoked, or is not known here")
  elseif not is_good(client) then
    errors.raise("denied", "another certificate has been issued in place of this one")
  elseif peer.expired then
    errors.raise("expired", "the certificate has expired", "`symphony cert issue` on a manager makes another")
  end
  return { kind = client.role, id = peer.cn, client = client }
end

local function node_record(id)
  if members then return members(id) end
  return record_of("/node/" .. id, function() return true end)
end

-- A peer is what its certificate's name is in the state now, whatever the certificate says.
local function identify(req)
  local peer = req.peer
  if peer.unix then
    return { kind = "control", uid = peer.uid, gid = peer.gid, pid = peer.pid }
  elseif not peer.cn then
    return { kind = "none" }
  elseif peer.ou == "operator" or peer.ou == "reader" then
    return identify_client(peer)
  end
  local node = node_record(peer.cn)
  if not node then
    errors.raise("denied", "this node is not a member of the cluster, or no longer one")
  elseif node.fingerprint and peer.fingerprint and node.fingerprint ~= peer.fingerprint then
    errors.raise("denied", "this certificate is not for the key that the node has now")
  end
  return { kind = peer.expired and "expired" or node.role, id = peer.cn, node = node }
end

local function authorize(route, who)
  if route.auth[who.kind] then
    return
  elseif who.kind == "none" then
    errors.raise("unauthenticated", "this needs a client certificate")
  elseif who.kind == "expired" then
    errors.raise("expired", "the certificate has expired: it is good for POST /v1/renew only")
  end
  errors.raise("denied", ("this is not allowed to %s %s"):format(who.kind:find("^[aeiou]") and "an" or "a", who.kind))
end

--- Asks again, in a task, whether the peer of @req is one of @auth: a stream may outlive a certificate, and a member.
--- Raises.
function M.recheck(req, auth)
  local peer = req.peer
  if peer.expires and require("sym.sys").now() > peer.expires then peer.expired = true end
  authorize({ auth = auth }, identify(req))
end

-- Answers -------------------------------------------------------------------------------------------------------------

local function respond(req, status, body, more)
  more = more or {}
  if type(body) == "table" then
    body = json.encode(body)
  end
  return req:respond(status, body or "", more.ctype or "application/json", more.extra)
end

--- Answers with an error. Once an answer has been started there is no other way to say so than to break it off.
function M.fail(req, err, status)
  local ok = pcall(respond, req, status or errors.http_status(err), errors.body(err))
  if not ok then
    req:abort()
  end
end

local function is_leader()
  local status, err = require("sym.raft").status()
  if not status then
    local _, why = require("symphony.cluster.state").ready()
    error(errors.from(why or err), 0)
  end
  return status.state == "leader"
end

local function answer(route, req, params)
  local who = identify(req)
  authorize(route, who)
  if route.guard then route.guard(req, who) end
  local fn = route.fn
  local basis = req.peer.fingerprint and not members and require("symphony.cluster.basis")
  local rests_on = basis and basis.of(req, who)
  if route.leader_only and not is_leader() then
    fn = require("symphony.cluster.leader").forward
    async.bind(rests_on)
  elseif basis then
    basis.take(rests_on)
  end
  local status, body, more = async.with_timeout(route.timeout_ms, fn, req, params, who)
  if status == M.STREAM then
    return
  elseif not status then
    error(errors.from(body or "the handler gave no answer"), 0)
  end
  respond(req, status, body, more)
end

local function run(route, req, params)
  local ok, err = xpcall(answer, errors.handler, route, req, params)
  if ok then
    return
  elseif err.code == "internal" then
    -- What went wrong is for the log; a peer is told no more than that.
    log.error(("%s %s: %s"):format(req.method, req.path, err.traceback or err.message))
    err = errors.new("internal", "an error in symphony itself", "the log of this daemon has the details")
  end
  M.fail(req, err)
end

--- Takes a request and has it answered by a task.
function M.dispatch(req)
  local route, params = find(req)
  if route then
    async.spawn(run, route, req, params)
  elseif #params > 0 then
    local hint = "allowed: " .. table.concat(params, ", ")
    M.fail(req, errors.new("invalid", ("%s is not possible here"):format(req.method), hint), 405)
  else
    -- Who holds the socket of a worker may have taken it for that of a manager.
    local err = req.peer.unix and select(2, require("symphony.cluster.identity").needs("manager"))
    M.fail(req, err or errors.new("not_found", "there is nothing at this path"))
  end
end

return M
