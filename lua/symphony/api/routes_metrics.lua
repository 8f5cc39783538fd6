-- GET /metrics: this node's figures, for Prometheus.
local metrics = require "symphony.metrics"
local text = require "symphony.metrics.text"

local M = {}

local READERS = { control = true, manager = true, operator = true, reader = true }

-- What does not run just now has no figures, at each scrape anew. The nodes are asked before raft, which shows their
-- names.
local everywhere = { "process", "http", "identity", "gossip", "agents" }
local managers = { "nodes", "raft", "store" }

function M.routes(router)
  local is_manager = require("symphony.cluster.identity").role() == "manager"
  for _, list in ipairs { everywhere, is_manager and managers or {} } do
    for _, name in ipairs(list) do require("symphony.metrics." .. name).register() end
  end

  router.route("GET", "/metrics", { auth = READERS }, function()
    return 200, metrics.scrape(), { ctype = text.CONTENT_TYPE }
  end)
end

return M
