--- Figures of the policies: how many there are, what they have said here, and how the process is that runs them.
local engine = require "symphony.policy.engine"
local metrics = require "symphony.metrics"

local counter, gauge = metrics.counter, metrics.gauge

local M = {}

function M.figures()
  local set, said, sandbox = engine.figures(), counter("symphony_policy_decisions_total",
    "What policies have been asked for and said here, without trials."), {}
  for outcome, n in pairs(set.said) do said:add(n, { said = outcome }) end
  -- Without a policy there is no process, and its module need not be loaded.
  if package.loaded["sym.policy"] then sandbox = require("sym.policy").stats() end
  return {
    gauge("symphony_policies", "Policies in the state, by whether they run.")
      :add(set.enabled, { enabled = "true" }):add(set.disabled, { enabled = "false" }),
    gauge("symphony_policies_failing", "Enabled policies whose last call here has failed, or that do not load.",
      set.failing),
    said,
    counter("symphony_policy_calls_total", "Calls of the process that runs the policies.", sandbox.calls or 0),
    counter("symphony_policy_seconds_total", "Time that these calls have taken.", (sandbox.us_total or 0) / 1e6),
    counter("symphony_policy_kills_total", "How often that process was killed because a policy took too long.",
      sandbox.killed or 0),
    gauge("symphony_policy_memory_bytes", "Memory of the loaded policies.", sandbox.memory or 0),
  }
end

function M.register()
  metrics.source("policies", M.figures)
end

return M
