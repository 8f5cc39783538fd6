--- The figures of this daemon for Prometheus: who has some, registers a source; GET /metrics asks them all.
---
---   metrics.source("gossip", function()
---     return {
---       metrics.gauge("symphony_gossip_members", "Members by what gossip takes them for.")
---         :add(4, { state = "alive" }):add(1, { state = "dead" }),
---       metrics.counter("symphony_gossip_datagrams_total", "Datagrams received.", stats.received),
---     }
---   end)
---
--- Names follow https://prometheus.io/docs/practices/naming: symphony_ in front, base units (seconds, bytes), _total
--- behind a counter. Every family is also listed in docs/metrics.md.
local uv = require "luv"
local log = require "sym.log"
local errors = require "symphony.errors"
local text = require "symphony.metrics.text"

local M = {}

local sources = {} -- by name: {name, fn, failures, failing}
local order = {}   -- their names
local took_ns = 0  -- the last scrape

local Family = {}
Family.__index = Family

local known = {} -- names that were checked

local function check(name, pattern)
  if not known[name] then
    if not name:match(pattern) then error("not a name of a metric or label: " .. name, 4) end
    known[name] = true
  end
end

--- One sample more; @value nil adds none. A histogram's value is as sym.metrics has it. Returns the family.
function Family:add(value, labels)
  if value == nil then return self end
  for name in pairs(labels or {}) do check(name, "^[%a_][%w_]*$") end
  if type(value) == "boolean" then value = value and 1 or 0 end
  local sample = { value = value, labels = labels }
  if self.type == "histogram" then sample.limits = require("sym.metrics").limits end
  self.samples[#self.samples + 1] = sample
  return self
end

local function family(kind, name, help, value, labels)
  check(name, "^[%a_:][%w_:]*$")
  return setmetatable({ type = kind, name = name, help = help, samples = {} }, Family):add(value, labels)
end

--- What only rises (and begins anew with the daemon). @value and @labels are a first sample; more by :add.
function M.counter(name, help, value, labels) return family("counter", name, help, value, labels) end

--- What rises and falls. A boolean is 1 or 0.
function M.gauge(name, help, value, labels) return family("gauge", name, help, value, labels) end

--- Durations, counted by sym.metrics' limits: {counts..., sum =}.
function M.histogram(name, help, value, labels) return family("histogram", name, help, value, labels) end

--- Has fn() asked at every scrape: it returns a list of families, or nil when it has none now. It runs in a task and
--- may wait, but somebody waits for it; it may raise, and is left out of that scrape then. The same name again
--- replaces it.
function M.source(name, fn)
  if not sources[name] then order[#order + 1] = name end
  sources[name] = { name = name, fn = fn, failures = 0 }
end

--- Forgets the source; one that there is not is fine.
function M.forget(name)
  sources[name] = nil
  for i, other in ipairs(order) do
    if other == name then return table.remove(order, i) end
  end
end

local function ask(source)
  local ok, list = xpcall(source.fn, errors.handler)
  if ok then
    source.failing = false
    return list or {}
  end
  source.failures = source.failures + 1
  if not source.failing then
    source.failing = true
    log.warn(("metrics: %s is left out: %s"):format(source.name, list.traceback or list.message))
  end
  return {}
end

--- All families there are now. In a task.
function M.collect()
  local all = {}
  local failures = M.counter("symphony_metrics_failures_total", "Scrapes from which a source of figures was left out.")
  for _, name in ipairs(table.move(order, 1, #order, 1, {})) do
    local source = sources[name]
    local list = source and ask(source) or {}
    table.move(list, 1, #list, #all + 1, all)
    if source then failures:add(source.failures, { source = name }) end
  end
  all[#all + 1] = failures
  all[#all + 1] = M.gauge("symphony_metrics_duration_seconds", "What the scrape before this one took.", took_ns / 1e9)
  return all
end

--- The answer of GET /metrics. In a task.
function M.scrape()
  local began = uv.hrtime()
  local answer = text.render(M.collect())
  took_ns = uv.hrtime() - began
  return answer
end

return M
