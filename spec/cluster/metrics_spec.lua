-- GET /metrics: what it says at both doors, to whom, and that Debian's Prometheus takes it.
local uv = require "luv"
local cluster = require "spec.support.cluster"
local json = require "spec.support.json"
local proc = require "spec.support.proc"
local prometheus = require "spec.support.prometheus"

local function scrape(m)
  local answer = assert(m:http("GET", "/metrics", nil, { timeout = 20 * cluster.patience }))
  assert.equal(200, answer.status, answer.body)
  return prometheus.parse(answer.body), answer
end

-- What promtool has to say of it: nothing.
local function lint(text)
  local result = prometheus.promtool({ "check", "metrics" }, { stdin = text })
  assert.equal(0, result.code, result.out .. result.err)
  assert.equal("", result.out .. result.err)
end

-- The same over the remote port, with curl's words for a certificate.
local function remote(m, words)
  local name = json.decode(proc.read_file(m.dir .. "/key.json")).node_id
  local argv = { "curl", "-sS", "--max-time", tostring(20 * cluster.patience), "--cacert", m.dir .. "/tls/ca.crt",
    "--connect-to", ("%s::%s:"):format(name, m.address), "-w", "\n%{http_code} %{content_type}" }
  table.move(words, 1, #words, #argv + 1, argv)
  argv[#argv + 1] = ("https://%s:%d/metrics"):format(name, m.remote_port)
  local result = proc.run(argv, { timeout = 30 * cluster.patience })
  local body, status, ctype = result.out:match("^(.*)\n(%d+) ([^\n]*)$")
  assert.equal(0, result.code, result.err)
  return tonumber(status), body, ctype
end

local function own(m)
  return { "--cert", m.dir .. "/tls/node.crt", "--key", m.dir .. "/tls/node.key" }
end

describe("GET /metrics", function()
  it("has the figures of this manager, as promtool likes them", cluster.scenario(function(t)
    local m = t:manager():start()
    -- Before it is part of a cluster it has those of the process.
    local families, answer = scrape(m)
    assert.equal("text/plain; version=0.0.4; charset=utf-8", answer.headers["content-type"])
    lint(answer.body)
    assert.is_nil(families.symphony_raft_term)
    assert.is_nil(families.symphony_node_info)
    assert.is_true(prometheus.value(families, "process_resident_memory_bytes") > 1e6)
    assert.is_true(prometheus.value(families, "process_open_fds") > 5)
    assert.is_true(math.abs(prometheus.value(families, "process_start_time_seconds") - os.time()) < 600)

    m:json("manager", "init")
    for i = 1, 10 do m:json("kv", "put", "k" .. i, "v") end
    assert.equal(404, m:http("GET", "/v1/kv/none").status)
    scrape(m)
    families, answer = scrape(m)
    lint(answer.body)
    local function value(...) return prometheus.value(families, ...) end
    assert.equal(1, value("symphony_raft_is_leader"))
    assert.equal(1, value("symphony_raft_leader_id"))
    assert.equal(1, value("symphony_raft_members", { role = "voter" }))
    assert.is_true(value("symphony_raft_txns_total", { result = "applied" }) >= 10)
    assert.is_true(value("symphony_raft_commit_duration_seconds_count") >= 10)
    assert.is_true(value("symphony_raft_commit_duration_seconds_sum") > 0)
    assert.is_true(value("symphony_raft_append_duration_seconds_count") >= 10)
    assert.equal(m:json("manager", "status").revision, value("symphony_store_revision"))
    assert.is_true(value("symphony_store_bytes") > 0)
    assert.equal(1 << 30, value("symphony_store_quota_bytes"))
    assert.equal(2, value("symphony_tokens"))
    assert.equal(0, value("symphony_pending_joins"))
    assert.equal(1, value("symphony_http_requests_total", { door = "control", class = "kv_get", code = "4xx" }))
    assert.equal(10, value("symphony_http_requests_total", { door = "control", class = "kv_put", code = "2xx" }))
    assert.equal(10, value("symphony_http_request_duration_seconds_count", { door = "control", class = "kv_put" }))
    assert.equal(2, value("symphony_http_requests_total", { door = "control", class = "metrics", code = "2xx" }))
    assert.equal(0, value("symphony_http_connections", { door = "remote" }))
    assert.is_true(value("symphony_loop_turn_seconds_count") > 0)
    assert.is_true(value("symphony_lua_tasks") >= 1)
    assert.is_true(value("symphony_certificate_expires_seconds", { certificate = "node" }) > os.time() + 80 * 86400)
    assert.is_true(value("symphony_certificate_expires_seconds", { certificate = "ca" }) > os.time() + 3000 * 86400)
    assert.is_true(value("symphony_metrics_duration_seconds") > 0)
    for _, sample in ipairs(families.symphony_metrics_failures_total.samples) do
      assert.equal(0, sample.value, sample.labels.source)
    end
    local me = m:json("manager", "members")[1]
    assert.equal(1, value("symphony_node_info", { node_id = me.node_id, name = me.name, role = "manager" }))
    local nodes = 0
    for _, sample in ipairs(families.symphony_nodes.samples) do nodes = nodes + sample.value end
    assert.equal(1, nodes)
  end))

  it("counts what watches and watchers do", cluster.scenario(function(t)
    local m = t:cluster(1)[1]
    cluster.wait_for("symphony's own watches, of which gossip's and the services' are the last", 20, function()
      local families = scrape(m)
      return families.symphony_gossip_known_nodes and families.symphony_resources_unplaced
    end)
    local before = prometheus.value(scrape(m), "symphony_store_watches")
    local watch = proc.begin { "curl", "-sN", "--unix-socket", m.socket, "http://localhost/v1/watch?prefix=" }
    cluster.wait_for("the watch", 10, function() return watch.out:find("sync", 1, true), watch.err end)
    m:json("kv", "put", "a", "1")
    cluster.wait_for("its event", 10, function() return watch.out:find('"a"', 1, true), watch.out end)
    local families = scrape(m)
    assert.equal(before + 1, prometheus.value(families, "symphony_store_watches"))
    assert.equal(0, prometheus.value(families, "symphony_store_watches_cut_total"))
    assert.is_true(prometheus.value(families, "symphony_store_events_delivered_total") >= 1)
    watch.process:kill("sigterm")
    cluster.wait_for("its end", 10, function()
      return prometheus.value(scrape(m), "symphony_store_watches") == before
    end)
  end))

  it("shows a turn of the loop that keeps all others waiting", cluster.scenario(function(t)
    local m = t:cluster(1)[1]
    local function long()
      local families = scrape(m)
      return prometheus.value(families, "symphony_loop_turn_seconds_count") -
        prometheus.value(families, "symphony_loop_turn_seconds_bucket", { le = "0.1" })
    end
    local before = long()
    local result = m:cli("lua", "-e",
      "local uv = require 'luv' local till = uv.hrtime() + 120e6 repeat until uv.hrtime() > till return 'spun'")
    assert.truthy(result.out:find("spun", 1, true), result.out .. result.err)
    assert.is_true(long() > before)
  end))

  it("leaves out what a manager has no more when it leaves, and has it again", cluster.scenario(function(t)
    local m = t:cluster(2)
    local function nodes()
      local n = 0
      for _, sample in ipairs(scrape(m[2]).symphony_nodes.samples) do n = n + sample.value end
      return n
    end
    cluster.wait_for("both nodes", 20, function() return nodes() == 2 end)
    m[2]:json("manager", "leave")
    local families = scrape(m[2])
    for name in pairs(families) do
      for _, part in ipairs { "raft", "store", "node" } do assert.is_nil(name:match("^symphony_" .. part), name) end
    end
    m[2]:json("manager", "join", m[1]:remote(), "--token", t.tokens.manager)
    cluster.wait_for("both nodes again", 20, function() return nodes() == 2 end)
    for _, sample in ipairs(scrape(m[2]).symphony_metrics_failures_total.samples) do
      assert.equal(0, sample.value, sample.labels.source)
    end
  end))

  it("is for those who may read, over TLS, and needs no quorum", cluster.scenario(function(t)
    local m = t:cluster(3)
    local status, body, ctype = remote(m[1], own(m[2]))
    assert.equal(200, status, body)
    assert.equal("text/plain; version=0.0.4; charset=utf-8", ctype)
    lint(body)
    status, body = remote(m[1], {})
    assert.equal(401, status, body)
    -- Who does not even finish the handshake is counted.
    local socket = uv.new_tcp()
    socket:connect(m[1].address, m[1].remote_port, function(err)
      assert.is_nil(err)
      socket:write("no TLS at all\r\n\r\n")
    end)
    cluster.wait_for("a failed handshake", 20, function()
      return prometheus.value(scrape(m[1]), "symphony_http_handshakes_failed_total", { door = "remote" }) == 1
    end)
    socket:close()
    assert.equal(1, prometheus.value(scrape(m[1]), "symphony_http_requests_total",
      { door = "remote", class = "metrics", code = "4xx" }))
    m[2]:crash()
    m[3]:crash()
    cluster.wait_for("the loss of the quorum to show", 20, function()
      local families = prometheus.parse((select(2, remote(m[1], own(m[1])))))
      return prometheus.value(families, "symphony_raft_has_quorum") == 0
    end)
  end))

  it("is there on a worker, without raft and the state", cluster.scenario(function(t)
    local m = t:cluster(1)[1]
    local w = t:join_workers(1, m)[1]
    local families
    cluster.wait_for("gossip to know both, and the agent to be in sync", 30, function()
      families = scrape(w)
      return prometheus.value(families, "symphony_gossip_members", { state = "alive" }) == 2 and
        prometheus.value(families, "symphony_agent_synced") == 1
    end)
    assert.equal(1, prometheus.value(families, "symphony_agent_connected"))
    assert.equal(1, prometheus.value(families, "symphony_node_info", { role = "worker" }))
    assert.is_nil(families.symphony_raft_term)
    assert.is_nil(families.symphony_store_revision)
    assert.is_nil(families.symphony_agents)
    assert.equal(1, prometheus.value(scrape(m), "symphony_agents"))
    local status, body = remote(w, own(m))
    assert.equal(200, status, body)
    lint(body)
    for _, who in ipairs { {}, own(w) } do assert.is_true(remote(w, who) >= 401) end
    assert.equal(403, (remote(m, own(w))))
    w:stop()
    cluster.wait_for("the manager to know no agent", 30, function()
      return prometheus.value(scrape(m), "symphony_agents") == 0
    end)
  end))

  it("is on a worker for readers and operators, until they are revoked", cluster.scenario(function(t)
    local m = t:cluster(1)[1]
    local dir = t:folder("certs")
    m:json("cert", "issue", "rita", "--role", "reader", "--out", dir) -- before the worker is there
    local w = t:join_workers(1, m)[1]
    m:json("cert", "issue", "otto", "--role", "operator", "--out", dir) -- and after
    local function scraped(name, folder)
      local argv = { "curl", "-sS", "--max-time", tostring(20 * cluster.patience), "--cacert", dir .. "/ca.crt",
        "--cert", ("%s/%s.crt"):format(folder or dir, name), "--key", ("%s/%s.key"):format(folder or dir, name),
        "--connect-to", "::" .. w:remote(), "-w", "\n%{http_code}", "https://worker.symphony.invalid/metrics" }
      local result = proc.run(argv, { timeout = 30 * cluster.patience })
      assert.equal(0, result.code, result.err)
      local body, status = result.out:match("^(.*)\n(%d+)$")
      return tonumber(status), body
    end
    local function wait(status, name)
      cluster.wait_for(("%d for %s"):format(status, name), 5, function()
        local got, body = scraped(name)
        return got == status, body
      end)
    end
    for _, name in ipairs { "rita", "otto" } do wait(200, name) end
    lint((select(2, scraped("rita"))))
    -- One in the place of another, one that is revoked, and both of them still after a restart on both sides.
    assert.equal(0, proc.run({ "cp", "-r", dir, t.root .. "/old" }).code)
    m:json("cert", "issue", "rita", "--role", "reader", "--out", dir, "--force")
    m:json("cert", "revoke", "otto")
    wait(403, "otto")
    wait(200, "rita")
    assert.equal(403, (scraped("rita", t.root .. "/old")))
    m:stop()
    assert.equal(200, (scraped("rita"))) -- by what it knew last
    w:stop()
    m:start()
    w:start()
    wait(200, "rita")
    assert.equal(403, (scraped("otto")))
    assert.equal(403, (scraped("rita", t.root .. "/old")))
    -- What was revoked while the worker was away.
    w:stop()
    m:json("cert", "revoke", "rita")
    w:start()
    cluster.wait_for("the stream", 10, function() return w:json("block", "status").manager end)
    wait(403, "rita")
  end))

  -- The configuration of a Prometheus that scrapes these nodes as a reader, with the alarms that we ship.
  local function config(managers, workers, folder)
    local interval = cluster.patience > 1 and "5s" or "1s"
    local function targets(list)
      local out = {}
      for i, m in ipairs(list) do out[i] = '"' .. m:remote() .. '"' end
      return table.concat(out, ", ")
    end
    local tls = folder .. "/tls/"
    managers[1]:json("cert", "issue", "prometheus", "--role", "reader", "--out", folder .. "/tls")
    return ([[
global:
  scrape_interval: %s
  scrape_timeout: %s
  evaluation_interval: %s
rule_files: ["%s"]
scrape_configs:
  - job_name: symphony
    scheme: https
    tls_config:
      ca_file: "%sca.crt"
      cert_file: "%sprometheus.crt"
      key_file: "%sprometheus.key"
    static_configs:
      - targets: [%s]
  - job_name: symphony-workers
    scheme: https
    tls_config:
      ca_file: "%sca.crt"
      cert_file: "%sprometheus.crt"
      key_file: "%sprometheus.key"
      server_name: worker.symphony.invalid
    static_configs:
      - targets: [%s]
]]):format(interval, interval, interval, uv.fs_realpath("contrib/prometheus/alerts.yml"), tls, tls, tls,
      targets(managers), tls, tls, tls, targets(workers))
  end

  it("is what a Prometheus scrapes, and its alarms see what happens", cluster.scenario(function(t)
    local m = t:cluster(3)
    m[1]:json("kv", "put", "a", "1")
    local folder = t:folder("prometheus")
    local w = t:join_workers(1, m[1])
    local server = prometheus.start(folder, config(m, w, folder))
    local function wait_query(what, query, check)
      return cluster.wait_for(what, 60, function()
        local rows, err = server:query(query)
        return rows and check(rows) and rows, rows or err
      end)
    end
    local function is(n)
      return function(rows) return #rows == 1 and rows[1].value == n end
    end
    wait_query("all three to be up", 'sum(up{job="symphony"})', is(3))
    wait_query("the worker to be up", 'sum(up{job="symphony-workers"})', is(1))
    wait_query("what the worker says", 'symphony_agent_synced{job="symphony-workers"}', is(1))
    wait_query("one leader", "sum(symphony_raft_is_leader)", is(1))
    wait_query("everybody to see two others", 'sum(symphony_raft_peer_up{role="voter"})', is(6))
    wait_query("the put", 'sum(symphony_http_requests_total{class="kv_put", code="2xx"})', function(rows)
      return #rows == 1 and rows[1].value >= 1
    end)
    wait_query("a quantile of the commits",
      "histogram_quantile(0.5, sum by (le) (symphony_raft_commit_duration_seconds_bucket))", function(rows)
        return #rows == 1 and rows[1].value > 0 and rows[1].value < 5
      end)
    -- No alarm is on in a cluster that is well; each of them can be asked.
    local rules = {}
    for _, rule in ipairs(assert(server:api("rules")).groups[1].rules) do
      rules[rule.name] = rule.query
      assert.same({}, assert(server:query(rule.query)), rule.name)
    end
    local leader, others = t:leader()
    others[1]:crash()
    local rows = wait_query("the alarm of the voter", assert(rules.SymphonyVoterDown), function(found)
      return #found == 1
    end)
    assert.equal(leader:remote(), rows[1].labels.instance)
    assert.equal(tostring(leader:member(others[1]).raft_node_id), rows[1].labels.peer)
    wait_query("the alarm of the daemon", assert(rules.SymphonyDaemonDown), function(found)
      return #found == 1 and found[1].labels.instance == others[1]:remote()
    end)
    others[2]:crash()
    wait_query("the alarm of the quorum", assert(rules.SymphonyNoLeader), function(found) return #found == 1 end)
    server:stop()
  end))

  it("comes with alarms that promtool has tried", function()
    local tested = prometheus.promtool({ "test", "rules", "contrib/prometheus/alerts_test.yml" }, { timeout = 60 })
    assert.equal(0, tested.code, tested.out .. tested.err)
    local text = assert(proc.read_file("contrib/prometheus/alerts.yml"))
    local tests = assert(proc.read_file("contrib/prometheus/alerts_test.yml"))
    for name in text:gmatch("%- alert: (%w+)") do
      local _, n = tests:gsub("alertname: " .. name .. "%f[%W]", "")
      assert.is_true(n >= 2, name .. " is not tried both ways")
    end
  end)
end)
