-- All routes of the cluster, one module a theme.
local M = {}

local parts = { "routes_status", "routes_join", "routes_agent", "routes_nodes", "routes_events", "routes_certs",
  "routes_txn", "routes_backup", "routes_gossip_key", "routes_policy", "routes_res" }

function M.routes(router)
  for _, name in ipairs(parts) do require("symphony.api." .. name).routes(router) end
end

return M
