-- The resources of services: GET /v1/res; GET, POST /v1/res/{kind}; GET, PATCH, DELETE /v1/res/{kind}/{id}.
local async = require "symphony.async"
local lazy = require "symphony.lazy"
local render = require "symphony.cli.render"
local state = require "symphony.cluster.state"

local changes = lazy "symphony.services.changes"
local resources = lazy "symphony.services.resources"

local M = {}

local READERS = { control = true, manager = true, operator = true, reader = true }
local OPERATORS = { control = true, manager = true, operator = true }

local function freshness(req) return { stale = req:param("stale") == "ok" } end

local function pause() async.sleep(0) end

local function asker(req, who) return require("symphony.services.seam").asker(req, who) end

local function opts_of(req)
  return { plan = req:param("plan") == "true" }
end

function M.routes(router)
  local write = { auth = OPERATORS, leader_only = true }

  router.route("GET", "/v1/res", { auth = READERS }, function(req)
    assert(state.read(freshness(req)))
    return 200, resources.kinds()
  end)

  router.route("GET", "/v1/res/{kind}", { auth = READERS }, function(req, params)
    local fresh = assert(state.read(freshness(req)))
    local rows = resources.list(params.kind)
    for _, row in ipairs(rows) do row.stale = fresh.stale or nil end
    return 200, render.encode(rows, pause)
  end)

  router.route("GET", "/v1/res/{kind}/{id}", { auth = READERS }, function(req, params)
    local fresh = assert(state.read(freshness(req)))
    local row = resources.get(params.kind, params.id)
    row.stale = fresh.stale or nil
    return 200, row
  end)

  router.route("POST", "/v1/res/{kind}", write, function(req, params, who)
    return 200, changes.serve_create(params.kind, router.json(req), asker(req, who), opts_of(req))
  end)

  router.route("PATCH", "/v1/res/{kind}/{id}", write, function(req, params, who)
    return 200, changes.serve_update(params.kind, params.id, router.json(req), asker(req, who), opts_of(req))
  end)

  router.route("DELETE", "/v1/res/{kind}/{id}", write, function(req, params, who)
    return 200, changes.serve_remove(params.kind, params.id, asker(req, who), opts_of(req))
  end)
end

return M
