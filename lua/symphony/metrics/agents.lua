--- Figures of the agents: on a manager how many are connected to it, on a worker how its own is.
local identity = require "symphony.cluster.identity"
local metrics = require "symphony.metrics"

local gauge = metrics.gauge

local M = {}

function M.of_manager()
  return { gauge("symphony_agents", "Agents of workers that are connected to this manager.",
    require("symphony.cluster.agents").count()) }
end

function M.of_worker()
  local view = require("symphony.cluster.agent").view()
  if not view then return nil end
  local assignments = 0
  for _ in pairs(view.assigned or {}) do assignments = assignments + 1 end
  return {
    gauge("symphony_agent_connected", "1 while this worker's agent is connected to a manager.", view.manager ~= nil),
    gauge("symphony_agent_synced", "1 while it has been told all there is for it.", view.synced == true),
    gauge("symphony_agent_revision", "Revision of the state up to which it has been told.", view.revision),
    gauge("symphony_agent_assignments", "What this worker is told to have or do.", assignments),
  }
end

function M.register()
  metrics.source("agents", identity.role() == "manager" and M.of_manager or M.of_worker)
end

return M
