-- GET /metrics: this node's figures, for Prometheus.
local M = {}

local READERS = { control = true, manager = true, operator = true, reader = true }

-- What does not run just now has no figures, at each scrape anew. The nodes are asked before raft, which shows their
-- names.
local everywhere = { "process", "http", "identity", "gossip", "agents", "services" }
local managers = { "nodes", "raft", "store", "ca", "policies" }

local loaded = false

-- At the first scrape: a node that nobody asks does without the memory.
local function load()
  if loaded then return end
  loaded = true
  local is_manager = require("symphony.cluster.identity").role() == "manager"
  for _, list in ipairs { everywhere, is_manager and managers or {} } do
    for _, name in ipairs(list) do require("symphony.metrics." .. name).register() end
  end
end

function M.routes(router)
  router.route("GET", "/metrics", { auth = READERS }, function()
    load()
    return 200, require("symphony.metrics").scrape(), { ctype = require("symphony.metrics.text").CONTENT_TYPE }
  end)
end

return M
