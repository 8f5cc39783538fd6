-- The policies: GET /v1/policies; GET, PUT, DELETE /v1/policies/{name}; GET /v1/policies/{name}/history; POST
-- /v1/policies/{name}/enable, .../disable, .../rollback; POST /v1/policy/test, /v1/policy/trace.
local engine = require "symphony.policy.engine"
local errors = require "symphony.errors"
local json = require "symphony.json"
local leader = require "symphony.cluster.leader"
local state = require "symphony.cluster.state"
local store = require "symphony.policy.store"

local M = {}

local READERS = { control = true, manager = true, operator = true, reader = true }
local MANAGERS = { control = true, manager = true } -- a policy lets nodes in: it is as good as a token
local REASON_MAX = 500

local nullable = json.nullable

local function fresh(req)
  return assert(state.read { stale = req:param("stale") == "ok" })
end

-- Who asks, in words.
local function by(req, who)
  local asker = leader.asker(req, who)
  if asker.kind == "control" then
    return asker.name and ("the control socket of %s"):format(asker.name) or "a control socket"
  end
  return ("%s %s"):format(asker.role or "certificate", asker.name or "?")
end

local function object(v, name)
  v = nullable(v)
  if v ~= nil and type(v) ~= "table" then errors.raise("invalid", name .. " is a JSON object") end
  return v
end

local function text(v, name)
  if type(v) ~= "string" then errors.raise("invalid", name .. " is a text") end
  return v
end

-- The source in a body: the text itself, or {"source": text}.
local function source_of(router, req)
  if (req:header("content-type") or ""):find("^application/json") then
    return text(router.json(req).source, "source")
  end
  return req.body or ""
end

-- One case instead of the selftest, when an input is given.
local function cases_of(body)
  local input = object(body.input, "input")
  if not input then
    if nullable(body.hook) then errors.raise("invalid", "a hook is tried with an input") end
    return nil
  end
  return json.array { { name = "input", hook = text(body.hook, "hook"), input = input,
    state = object(body.state, "state") } }
end

local READ = { auth = READERS }
local WRITE = { auth = MANAGERS, leader_only = true }

-- Handlers of reads, and of changes: fn(name, by, req).
local function reading(fn)
  return function(req, params)
    fresh(req)
    return 200, fn(params.name)
  end
end

local function changing(fn)
  return function(req, params, who)
    assert(state.read())
    return 200, fn(params.name, by(req, who), req)
  end
end

function M.routes(router)
  router.route("GET", "/v1/policies", READ, reading(function() return assert(store.ls()) end))
  router.route("GET", "/v1/policies/{name}", READ, reading(store.show))
  router.route("GET", "/v1/policies/{name}/history", READ, reading(store.history))
  router.route("PUT", "/v1/policies/{name}", WRITE, changing(function(name, who, req)
    return store.set(name, source_of(router, req), who)
  end))
  router.route("DELETE", "/v1/policies/{name}", WRITE, changing(store.rm))
  router.route("POST", "/v1/policies/{name}/enable", WRITE, changing(store.enable))
  router.route("POST", "/v1/policies/{name}/disable", WRITE, changing(function(name, who, req)
    local reason = nullable(router.json(req).reason)
    return store.disable(name, who, reason and json.clean(text(reason, "reason"):sub(1, REASON_MAX)))
  end))
  router.route("POST", "/v1/policies/{name}/rollback", WRITE, changing(function(name, who, req)
    return store.rollback(name, nullable(router.json(req).version), who)
  end))

  router.route("POST", "/v1/policy/test", { auth = MANAGERS }, function(req)
    local body = router.json(req)
    local tested, err = engine.test(store.check_source(text(body.source, "source")), cases_of(body))
    if not tested then return nil, err end
    return 200, tested
  end)

  -- On the leader: what it would say.
  router.route("POST", "/v1/policy/trace", { auth = MANAGERS, leader_only = true }, function(req)
    local body = router.json(req)
    assert(state.read())
    return 200, engine.explain(text(body.hook, "hook"), object(body.input, "input") or {}, object(body.state, "state"))
  end)
end

return M
