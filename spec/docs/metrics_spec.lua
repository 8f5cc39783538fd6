-- docs/metrics.md lists what is there; the alarms and the dashboard ask for nothing else.
local cluster = require "spec.support.cluster"
local json = require "spec.support.json"
local proc = require "spec.support.proc"
local prometheus = require "spec.support.prometheus"

-- What no cluster that is well has.
local SOMETIMES = { symphony_node_down_since_seconds = true, symphony_ca_change_waiting_nodes = true,
  symphony_service_resources = true }

-- name -> {type, labels as a text}
local function documented()
  local list = {}
  for line in assert(proc.read_file("docs/metrics.md")):gmatch("[^\n]+") do
    local name, kind, labels = line:match("^| `([%w_]+)` | (%l+) | ([%l_, ]*)|")
    if name then
      assert.is_nil(list[name], "twice: " .. name)
      list[name] = { type = kind, labels = labels:gsub(" $", "") }
    end
  end
  return list
end

-- The same of scrapes. Each sample of a family has the same labels.
local function found(list, families)
  for name, family in pairs(families) do
    for _, sample in ipairs(family.samples) do
      local labels = {}
      for label in pairs(sample.labels) do
        if label ~= "le" then labels[#labels + 1] = label end
      end
      table.sort(labels)
      local text = table.concat(labels, ", ")
      assert.is_true(not list[name] or list[name].labels == text, name .. " has samples with other labels than others")
      list[name] = { type = family.type, labels = text }
    end
  end
  return list
end

-- The names in @text that could be families.
local function named(text)
  local names = {}
  for name in text:gmatch("%f[%w_](symphony_[%l_]+)") do names[name:gsub("_bucket$", ""):gsub("_sum$", "")
    :gsub("_count$", "")] = true end
  for name in text:gmatch("%f[%w_](process_[%l_]+)") do names[name] = true end
  return names
end

describe("docs/metrics.md", function()
  it("has every family with its type and labels, and no other", cluster.scenario(function(t)
    local m = t:cluster(2)
    local worker = t:join_workers(1, m[1], { flags = { "--lua-dir", t:folder "own" } })[1]
    m[1]:json("kv", "put", "a", "1")
    local leader = t:leader()
    local answer
    cluster.wait_for("both to be heard of, and the leader to have looked at the services", 20, function()
      answer = leader:http("GET", "/metrics")
      return answer.body:find('symphony_raft_peer_silence_seconds{', 1, true) and
        answer.body:find("\nsymphony_resources_unplaced ", 1, true), answer.body
    end)
    local there = found({}, prometheus.parse(answer.body))
    local of_worker = found({}, prometheus.parse(worker:http("GET", "/metrics").body))
    for name in pairs(of_worker) do
      for _, part in ipairs { "raft", "store" } do assert.is_nil(name:match("^symphony_" .. part), name) end
    end
    there = found(there, prometheus.parse(worker:http("GET", "/metrics").body))
    local shown = documented()
    local count = 0
    for name, family in pairs(there) do
      count = count + 1
      assert.same(family, shown[name], name .. " in docs/metrics.md")
    end
    for name in pairs(shown) do assert.is_true(there[name] ~= nil or SOMETIMES[name], "there is no " .. name) end
    assert.is_true(count > 80, count)
  end))

  it("has what the alarms, the dashboard and the documentation speak of", function()
    local shown = documented()
    for _, path in ipairs { "contrib/prometheus/alerts.yml", "contrib/dashboards/symphony.json", "docs/metrics.md" } do
      local count = 0
      for name in pairs(named(assert(proc.read_file(path)))) do
        count = count + 1
        assert.is_table(shown[name], path .. " speaks of " .. name)
      end
      assert.is_true(count > 5, path)
    end
  end)

  it("comes with a dashboard of which every query is one", function()
    local dashboard = assert(json.decode(assert(proc.read_file("contrib/dashboards/symphony.json"))))
    local rules, ids = {}, {}
    for _, panel in ipairs(dashboard.panels) do
      assert.is_nil(ids[panel.id], "two panels with one id")
      ids[panel.id] = true
      assert.is_true(panel.type == "row" or #panel.targets > 0, panel.title)
      for _, target in ipairs(panel.targets or {}) do
        local expr = target.expr:gsub("%$__rate_interval", "5m"):gsub("%$job", "symphony"):gsub("%$instance", ".*")
        rules[#rules + 1] = { record = "q" .. #rules, expr = expr }
      end
    end
    assert.is_true(#rules > 10)
    -- promtool tries expressions as rules.
    local folder = proc.temp_folder()
    proc.write_file(folder .. "/rules.yml", json.encode { groups = { { name = "dashboard", rules = rules } } })
    local checked = prometheus.promtool { "check", "rules", folder .. "/rules.yml" }
    proc.remove_tree(folder)
    assert.equal(0, checked.code, checked.out .. checked.err)
  end)
end)
