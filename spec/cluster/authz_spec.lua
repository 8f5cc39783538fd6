-- What the certificate of a worker opens: its own part of the state, and nothing else; and what a worker's own port
-- opens to others. All routes are walked, as they are registered, with every method.
local clients = require "spec.support.clients"
local cluster = require "spec.support.cluster"
local json = require "spec.support.json"
local proc = require "spec.support.proc"

local METHODS = { "GET", "HEAD", "POST", "PUT", "PATCH", "DELETE" }

-- Every route as {method, path with {parameters}}, from where they are registered.
local function routes()
  local found, registrations = {}, 0
  for path in proc.run({ "find", "lua", "-name", "*.lua" }).out:gmatch("[^\n]+") do
    local text = assert(proc.read_file(path))
    for method, route in text:gmatch('router%.route%("(%u+)", "([^"]+)"') do
      found[#found + 1] = { method = method, path = route }
    end
    -- A registration in other words would escape the walk.
    registrations = registrations + select(2, text:gsub("[%.:]route%(", ""))
  end
  assert.equal(registrations - 1, #found) -- the function itself
  local c = assert(proc.read_file("src/daemon/api.c"))
  local in_c = {}
  for path in c:gmatch('"(/[%w/]+)"') do
    if path:find("^/v1/") or not path:find("/", 2, true) then in_c[path] = true end
  end
  assert.is_true(in_c["/v1/kv"] and in_c["/v1/watch"] and in_c["/healthz"])
  for path in pairs(in_c) do
    for _, method in ipairs { "GET", "HEAD" } do
      if path ~= "/v1/watch" or method == "GET" then found[#found + 1] = { method = method, path = path } end
    end
  end
  for _, method in ipairs { "GET", "HEAD", "PUT", "DELETE" } do
    found[#found + 1] = { method = method, path = "/v1/kv/{key*}" }
  end
  assert.is_true(#found > 40, #found)
  return found
end

-- The paths of a route with everything in the place of its parameters that a worker may think of.
local function filled(route, ids)
  if not route.path:find("{", 1, true) then return { route.path } end
  local out, values = {}, ids
  if route.path:find("{key*}", 1, true) then
    values = { "a", "%2Fsecret%2Fca", "/secret/ca", "../secret/ca", "..%2Fcluster", "secret/gossip", "token/" }
  end
  for i, value in ipairs(values) do out[i] = route.path:gsub("{%w+%*?}", (value:gsub("%%", "%%%%"))) end
  return out
end

local function ask(m, who, method, path, body)
  local answer, err = clients.secure(m, who, method, path, body or (method ~= "GET" and method ~= "HEAD"
    and "{}" or nil))
  return answer or error(("%s %s: %s"):format(method, path, err), 0)
end

local function code_of(answer)
  return type(answer.json) == "table" and type(answer.json.error) == "table" and answer.json.error.code or nil
end

-- What a worker's certificate may on a manager. The agent's stream and the leave are tried by themselves.
local OWN = { ["GET /v1/agent"] = false, ["POST /v1/agent/leave"] = false, ["POST /v1/agent/report"] = 400,
  ["POST /v1/agent/status"] = 400, ["POST /v1/agent/propose"] = 400,
  ["POST /v1/gossip"] = 200, ["POST /v1/renew"] = 400, ["GET /v1/version"] = 200, ["GET /healthz"] = 200,
  ["HEAD /healthz"] = 200, ["GET /readyz"] = 200 }

-- A certificate of our own making for the key of worker @w: what a hostile worker may ask for.
local function hostile_csr(t, w, subject)
  local path = t.root .. "/hostile.csr"
  local made = proc.run({ "openssl", "req", "-new", "-key", w.dir .. "/tls/node.key", "-subj", subject, "-addext",
    "subjectAltName=DNS:localhost,IP:127.0.0.1", "-addext", "basicConstraints=critical,CA:TRUE", "-out", path })
  assert.equal(0, made.code, made.err)
  return proc.read_file(path)
end

describe("the certificate of a worker", function()
  it("opens nothing on a manager but what is its own", cluster.scenario(function(t)
    local m = t:cluster(3)
    local w = t:join_workers(2, m[1])
    local leader, others = t:leader()
    local ids = { w[1].node_id, w[2].node_id, w[2].name, "1", "none" }
    local registered, count = {}, 0
    for _, one in ipairs { leader, others[1] } do
      for _, route in ipairs(routes()) do
        local name = route.method .. " " .. route.path
        registered[name] = true
        for _, path in ipairs(OWN[name] == false and {} or filled(route, ids)) do
          local answer = ask(one, clients.own(w[1]), route.method, path)
          local where = ("%s %s at %s: %s"):format(route.method, path, one.label, answer.body)
          if OWN[name] then
            assert.equal(OWN[name], answer.status, where)
          else
            assert.equal(403, answer.status, where)
            if route.method ~= "HEAD" then assert.equal("denied", code_of(answer), where) end
          end
          count = count + 1
        end
      end
    end
    for name in pairs(OWN) do assert.is_true(registered[name] or false, name) end
    assert.is_true(count > 150, count)

    -- By another method, or with the path in other words, it is no other.
    for _, route in ipairs(routes()) do
      for _, method in ipairs(METHODS) do
        local name = method .. " " .. route.path
        if not registered[name] then
          for _, path in ipairs(filled(route, { ids[2] })) do
            local answer = ask(leader, clients.own(w[1]), method, path)
            assert.is_true(answer.status >= 400, ("%s %s: %d"):format(method, path, answer.status))
          end
        end
      end
    end
    for _, path in ipairs { "//v1/nodes", "/v1//nodes", "/v1/agent/../nodes", "/healthz/../v1/nodes", "/v1/nodes/",
      "/V1/nodes", "/v1/node%73", "/v1%2Fnodes", "/v1/nodes?agent", "/v1/nodes%00", "/v1/./nodes", "/v1/kv/../nodes",
      "/v1/agent/" .. w[2].node_id, "/healthz%2F..%2Fv1%2Fnodes" } do
      local answer = ask(leader, clients.own(w[1]), "GET", path)
      assert.is_true(answer.status >= 400, ("%s: %d %s"):format(path, answer.status, answer.body))
    end
    -- It is the certificate that is refused: these are routes, and a manager's opens them.
    for _, path in ipairs { "/v1/nodes", "/v1/status", "/v1/members", "/v1/certs", "/v1/kv", "/metrics" } do
      assert.equal(200, ask(leader, clients.own(others[1]), "GET", path).status, path)
    end
    t:wait_status(w, "ready", m[1])
  end))

  it("opens, once it has expired, nothing but its renewal, now and then", cluster.scenario(function(t)
    local m = t:cluster(3)
    local w = t:join_workers(1, m[1])[1]
    local leader, others = t:leader()
    local path = t.root .. "/expired.crt"
    proc.write_file(path, clients.sign_worker(leader, w, -90 * 86400, -3600))
    local words = { "--cert", path, "--key", w.dir .. "/tls/node.key" }
    local ANY = { ["GET /healthz"] = 200, ["HEAD /healthz"] = 200, ["GET /readyz"] = 200, ["POST /v1/renew"] = 400 }
    for _, route in ipairs(routes()) do
      local name = route.method .. " " .. route.path
      local answer = ask(others[1], words, route.method, filled(route, { w.node_id })[1])
      assert.equal(ANY[name] or 403, answer.status, name .. ": " .. answer.body)
      if not ANY[name] and route.method ~= "HEAD" then assert.equal("expired", code_of(answer), name) end
    end
    -- It does so in a loop, at a follower and at the leader.
    local began = proc.now()
    local body, signed, last = json.encode { csr = hostile_csr(t, w, "/CN=x") }, 0, nil
    for i = 1, 30 do
      last = assert(clients.secure(i % 2 == 0 and leader or others[1], words, "POST", "/v1/renew", body))
      if last.status == 200 then
        signed = signed + 1
      else
        clients.refused(last, 503, "busy")
      end
    end
    assert.equal(503, last.status)
    assert.is_true(signed > 0 and signed <= 10 + math.ceil((proc.now() - began) / 30), signed)
    t:wait_status({ w }, "ready", m[1])
  end))

  it("speaks for its own node only, whatever its headers say", cluster.scenario(function(t)
    local m = t:cluster(3)
    local w = t:join_workers(1, m[1])[1]
    local leader, others = t:leader()
    local forger, words = clients.worker(t, leader, "forger")
    local before = t:nodes(leader)[w.node_id]
    local headers = ("symphony-forwarded: 1\r\nsymphony-node: %s\r\nsymphony-from: 10.0.0.1"):format(w.node_id)
    local report = json.encode { status = "ready", starts = 7, instance = "ff", version = "9.9-forged" }
    local answer = assert(clients.secure(leader, words, "POST", "/v1/agent/report", report, headers))
    assert.equal(200, answer.status, answer.body)
    -- A follower takes the word that it was passed on already, which is none the worse; and without it passes it on.
    clients.refused(clients.secure(others[1], words, "POST", "/v1/agent/report", report, headers), 503, "not_leader")
    answer = assert(clients.secure(others[1], words, "POST", "/v1/agent/report", report,
      headers:gsub("^[^\n]*\n", "")))
    assert.equal(200, answer.status, answer.body)
    local rows = t:nodes(leader)
    assert.equal("9.9-forged", rows[forger].version)
    assert.same({ before.version, before.status, before.since }, { rows[w.node_id].version, rows[w.node_id].status,
      rows[w.node_id].since })
    -- Out goes who asks.
    answer = assert(clients.secure(leader, words, "POST", "/v1/agent/leave", '{"force": true}', headers))
    assert.equal(200, answer.status, answer.body)
    rows = t:nodes(leader)
    assert.is_nil(rows[forger])
    assert.equal("ready", rows[w.node_id].status)
  end))

  it("gets no other certificate than its own", cluster.scenario(function(t)
    local m = t:cluster(3)
    local w = t:join_workers(2, m[1])
    local leader, others = t:leader()
    local manager = t:nodes(m[1])
    for id, row in pairs(manager) do manager = row.role == "manager" and id or manager end
    local forged = ("symphony-forwarded: 1\r\nsymphony-node: %s"):format(w[2].node_id)
    local foreign = json.encode { csr = hostile_csr(t, w[2], "/CN=" .. w[2].node_id) }
    for _, one in ipairs { leader, others[1] } do
      for _, headers in ipairs { "", forged } do
        clients.refused(clients.secure(one, clients.own(w[1]), "POST", "/v1/renew", foreign, headers), 403, "denied")
      end
    end
    -- With its own key it gets what it is, whatever the request says of its name, its role and its hosts.
    local own = hostile_csr(t, w[1], ("/OU=manager/CN=%s"):format(manager))
    for _, one in ipairs { leader, others[1] } do
      local answer = assert(clients.secure(one, clients.own(w[1]), "POST", "/v1/renew", json.encode { csr = own,
        role = "manager", node_id = manager, raft_node_id = 1 }))
      assert.equal(200, answer.status, answer.body)
      local path = t.root .. "/renewed.crt"
      proc.write_file(path, answer.json.certificate)
      local text = proc.run({ "openssl", "x509", "-in", path, "-noout", "-text" }).out
      local subject = text:match("Subject:([^\n]*)")
      assert.truthy(subject:find(w[1].node_id, 1, true), subject)
      assert.truthy(subject:find("OU%s*=%s*worker"), subject)
      assert.is_nil(text:find("localhost", 1, true), text)
      assert.is_nil(text:find("127.0.0.1", 1, true), text)
      assert.is_nil(text:find("CA:TRUE", 1, true), text)
    end
  end))

  it("shows its stream what is its own, and no secrets but the gossip keys", cluster.scenario(function(t)
    local m = t:cluster(1)[1]
    local id, words = clients.worker(t, m, "reads")
    local other = clients.worker(t, m, "other")
    local function assign(node, what)
      clients.evaluate(m, ([[
        local state = require "symphony.cluster.state"
        assert(state.submit { ops = { state.put("/assign/%s/block/%s", { of = %q }) } })
        return true]]):format(node, what, what))
    end
    assign(id, "mine-1")
    assign(other, "theirs-1")
    local stream = clients.watch(m, words, "/v1/agent?starts=1&instance=aa&min=0&peers=0.0&node=" .. other)
    cluster.wait_for("the listing", 10, function()
      return stream.out:find('"synced"', 1, true), stream.out .. stream.err
    end)
    m:json("token", "create", "--role", "worker")
    m:json("cert", "issue", "rita", "--role", "reader", "--out", t:folder("certs"))
    m:json("kv", "put", "users-key", "users-value")
    m:json("cluster", "gossip-key", "rotate")
    assign(other, "theirs-2")
    assign(id, "mine-2")
    cluster.wait_for("the changes", 10, function() return stream.out:find("mine-2", 1, true), stream.out end)
    local text = stream.out
    assert.truthy(text:find("mine-1", 1, true))
    local secrets = clients.evaluate(m, [[
      local state = require "symphony.cluster.state"
      -- Of the CA's key not the last line: that is of the public half, as in its certificate.
      local out = { "PRIVATE KEY", "/secret", "/token", "/kv/", "users-key", "theirs-", "raft_address" }
      for _, kv in ipairs(state.list_raw("/token/")) do out[#out + 1] = kv.key:match("[^/]*$") end
      for line in state.get("/secret/ca").key:gmatch("[%w+/=]+") do if #line == 64 then out[#out + 1] = line end end
      return out]])
    assert.is_true(#secrets >= 12, #secrets)
    for _, secret in ipairs(secrets) do assert.is_nil(text:find(secret, 1, true), secret) end
    -- And no kinds of lines but those that are known.
    local known = { cluster = true, gossip = true, node = true, status = true, put = true, delete = true, peers = true,
      peer = true, clients = true, client = true, synced = true, heartbeat = true }
    for _, line in ipairs(stream.lines()) do
      local found = false
      for name in pairs(line) do found = found or known[name] end
      assert.is_true(found, json.encode(line))
      assert.is_true(line.node == nil or line.node.node_id == id)
    end
    stream.process:kill("sigterm")
  end))

  it("does not let it pose as a manager", cluster.scenario(function(t)
    local m = t:cluster(1)[1]
    local w = t:join_workers(1, m)[1]
    local port = proc.free_port()
    local input = t.root .. "/input" -- one that never ends: it would hang up
    assert.equal(0, proc.run({ "mkfifo", input }).code)
    local fake = proc.begin({ "sh", "-c", 'exec openssl s_server -accept "$0" -cert "$1/node.crt" -key "$1/node.key" '
      .. '-cert_chain "$1/ca.crt" <>"$2"', "127.0.0.1:" .. port, w.dir .. "/tls", input })
    cluster.wait_for("the false manager", 10, function()
      return fake.out:find("ACCEPT", 1, true), fake.out .. fake.err
    end)
    local at = "127.0.0.1:" .. port
    local manager, worker = t:manager():start(), t:worker():start()
    for _, case in ipairs { { manager, "manager", t.tokens.manager }, { worker, "block", t.tokens.worker },
      { manager, "manager" }, { worker, "block" } } do
      local err = case[1]:fails(case[2], "join", at, table.unpack(case[3] and { "--token", case[3] } or {}))
      assert.equal("unauthenticated", err.code, json.encode(err))
      assert.truthy(err.message:find("no manager but a worker", 1, true), err.message)
    end
    local function curl(host, ...)
      return proc.run({ "curl", "-sS", "--max-time", "2", "--cacert", m.dir .. "/tls/ca.crt", "--connect-to",
        "::" .. at, "https://" .. host .. "/", ... })
    end
    local function sent() return fake.out:find("GET /", 1, true) end
    local manager_id = json.decode(proc.read_file(m.dir .. "/key.json")).node_id
    for _, host in ipairs { "localhost", "127.0.0.1", "[::1]", manager_id } do
      assert.equal(60, curl(host).code, host)
    end
    assert.is_nil(sent())
    -- That it is one who can be talked to shows who expects a worker.
    curl("worker.symphony.invalid")
    cluster.wait_for("a request to a worker", 10, function() return sent(), fake.out end)
    for _, secret in ipairs { t.tokens.manager, t.tokens.worker, "POST", "CERTIFICATE REQUEST" } do
      assert.is_nil(fake.out:find(secret, 1, true), secret)
    end
    fake.process:kill("sigkill")
  end))
end)

describe("the port of a worker", function()
  it("opens what it has to, to whom it has to", cluster.scenario(function(t)
    local m = t:cluster(1)[1]
    local w = t:join_workers(2, m)
    local who = { manager = clients.own(m), worker = clients.own(w[2]), own = clients.own(w[1]), none = {} }
    local dir = t:folder("certs")
    for name, role in pairs { rita = "reader", otto = "operator" } do
      m:json("cert", "issue", name, "--role", role, "--out", dir)
      who[role] = { "--cert", ("%s/%s.crt"):format(dir, name), "--key", ("%s/%s.key"):format(dir, name) }
    end
    who.expired = clients.certificate(t, m, { cn = w[2].node_id, ou = "worker", from = -1000, to = -10 })
    who.stranger = clients.certificate(t, m, { cn = "0123456789abcdefghijklmno0", ou = "manager" })
    who.unknown = clients.certificate(t, m, { cn = "nobody", ou = "operator", unknown = true })
    local ANY = { manager = 200, worker = 200, own = 200, none = 200, reader = 200, operator = 200, expired = 200,
      stranger = 200, unknown = 200 }
    local OPEN = {
      ["GET /healthz"] = ANY, ["HEAD /healthz"] = ANY,
      ["GET /v1/version"] = { manager = 200, worker = 200, own = 200, reader = 200, operator = 200 },
      ["GET /metrics"] = { manager = 200, reader = 200, operator = 200 },
      ["POST /v1/gossip"] = { manager = 200, worker = 200, own = 200 },
    }
    cluster.wait_for("the worker to know the certificates", 10, function()
      return ask(w[1], who.reader, "GET", "/metrics").status == 200 and
        ask(w[1], who.operator, "GET", "/metrics").status == 200
    end)
    for _, route in ipairs(routes()) do
      local name = route.method .. " " .. route.path
      for kind, words in pairs(who) do
        for _, path in ipairs(filled(route, { w[1].node_id })) do
          local answer = ask(w[1], words, route.method, path)
          local where = ("%s %s by %s: %d %s"):format(route.method, path, kind, answer.status, answer.body)
          local want = OPEN[name] and OPEN[name][kind]
          if want then
            assert.equal(want, answer.status, where)
          elseif OPEN[name] then
            assert.equal(kind == "none" and 401 or 403, answer.status, where)
          else
            assert.is_true(answer.status >= 400, where)
          end
        end
      end
    end
    -- What is there for the control socket alone is refused, and not only absent.
    for _, path in ipairs { "/v1/lua", "/v1/lua/complete", "/v1/lua/cancel", "/v1/command", "/v1/command/answer",
      "/v1/block/join", "/v1/manager/join" } do
      for kind, words in pairs(who) do
        assert.equal(kind == "none" and 401 or 403, ask(w[1], words, "POST", path).status, path .. " by " .. kind)
      end
    end
  end))
end)
