--- Figures of services: on the leader what lacks a node, on a worker with services how its resources are.
local identity = require "symphony.cluster.identity"
local metrics = require "symphony.metrics"

local counter, gauge = metrics.counter, metrics.gauge

local M = {}

function M.of_manager()
  local figures = require("symphony.services.loop").figures()
  if not figures then return nil end
  return {
    gauge("symphony_resources_unplaced", "On the leader: resources that lack a node.", figures.unplaced),
    gauge("symphony_services_suspended", "On the leader: 1 while nothing is moved from workers that are down.",
      figures.suspended),
  }
end

function M.of_worker()
  local services = package.loaded["symphony.services.worker"]
  if not services then return nil end
  local figures = services.figures()
  local states = gauge("symphony_service_resources", "Resources of this worker by their state.")
  for state, count in pairs(figures.states) do states:add(count, { state = state }) end
  return {
    states,
    gauge("symphony_service_unreported", "Resources of which the managers do not know the last state.", figures.unsent),
    counter("symphony_service_reconciles_total", "Steps with resources.", figures.reconciles),
    counter("symphony_service_failures_total", "Of these, that have failed.", figures.failures),
  }
end

function M.register()
  metrics.source("services", identity.role() == "manager" and M.of_manager or M.of_worker)
end

return M
