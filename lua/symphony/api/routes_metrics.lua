-- GET /metrics: this node's figures, for Prometheus.
local metrics = require "symphony.metrics"
local text = require "symphony.metrics.text"

local M = {}

local READERS = { control = true, manager = true, operator = true, reader = true }

-- A part that this node does not have has no figures, at each scrape anew. The nodes are asked before raft, which shows
-- their names.
local parts = { "process", "http", "identity", "nodes", "raft", "store" }

function M.routes(router)
  for _, name in ipairs(parts) do require("symphony.metrics." .. name).register() end

  router.route("GET", "/metrics", { auth = READERS }, function()
    return 200, metrics.scrape(), { ctype = text.CONTENT_TYPE }
  end)
end

return M
