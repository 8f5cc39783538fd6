--- How a change of the CA goes on; only the leader knows, and only while one is under way.
local metrics = require "symphony.metrics"

local M = {}

function M.families()
  local waiting = require("symphony.cluster.ca_rotation").waiting()
  if not waiting then return nil end
  return { metrics.gauge("symphony_ca_change_waiting_nodes",
    "Nodes that the change of the CA waits for, on the leader, while one is under way.", waiting) }
end

function M.register()
  metrics.source("ca", M.families)
end

return M
