-- Certificates for people and programs, used by curl on the remote port; and the change of the CA under load.
local cluster = require "spec.support.cluster"
local http = require "spec.support.http"
local json = require "spec.support.json"
local proc = require "spec.support.proc"

-- Calls @url (a path) of manager @m with curl and the certificate @name in @dir: {status, body, json, code, err}. More
-- words for curl behind.
local function curl(m, dir, name, path, ...)
  local argv = { "curl", "-sS", "-w", "\n%{http_code}", "--cacert", dir .. "/ca.crt", "--max-time", "20", ... }
  if name then
    for _, word in ipairs { "--cert", dir .. "/" .. name .. ".crt", "--key", dir .. "/" .. name .. ".key" } do
      argv[#argv + 1] = word
    end
  end
  argv[#argv + 1] = "https://" .. m:remote() .. path
  local result = proc.run(argv, { timeout = 30 * cluster.patience })
  local body, status = result.out:match("^(.*)\n(%d+)$")
  return { status = tonumber(status), body = body, json = json.decode(body or ""), code = result.code,
    err = result.err }
end

-- A client certificate of manager @m in folder @dir.
local function issue(m, dir, name, role, ...)
  return m:json("cert", "issue", name, "--role", role, "--out", dir, ...)
end

local function expect(want, answer)
  assert.equal(want, answer.status, proc.show(answer))
  return answer
end

-- A watch by curl that goes on: {out, ended()}.
local function watch(m, dir, name)
  local call = proc.begin({ "curl", "-sSN", "--cacert", dir .. "/ca.crt", "--cert", dir .. "/" .. name .. ".crt",
    "--key", dir .. "/" .. name .. ".key", "https://" .. m:remote() .. "/v1/watch" })
  cluster.wait_for("the watch to begin", 10, function() return call.out:find("sync", 1, true), call.out .. call.err end)
  return call
end

local function openssl(...)
  local result = proc.run({ "openssl", ... })
  assert.equal(0, result.code, result.err)
  return result.out
end

-- The ids of the keys with which the certificates of a PEM file were made, in hex.
local function subject_key(path)
  return openssl("x509", "-in", path, "-noout", "-ext", "subjectKeyIdentifier"):match("%x[%x:]+%x%s*$"):gsub("%s", "")
end
local function authority_key(path)
  return openssl("x509", "-in", path, "-noout", "-ext", "authorityKeyIdentifier"):match("%x[%x:]+%x%s*$"):gsub("%s", "")
end

describe("client certificates", function()
  it("let curl in, as what they are for", cluster.scenario(function(t)
    local m = t:cluster(3)
    local dir = t:folder("certs")
    local issued = issue(m[2], dir, "rita", "reader")
    assert.equal("rita", issued.name)
    issue(m[1], dir, "otto", "operator", "--ttl", "1h")
    local mode = require("luv").fs_stat(dir .. "/rita.key").mode & 511
    assert.equal(384, mode)

    for _, one in ipairs(m) do
      expect(200, curl(one, dir, "rita", "/v1/status"))
      expect(200, curl(one, dir, "otto", "/v1/kv/a", "-X", "PUT", "-d", "1"))
      assert.equal("1", expect(200, curl(one, dir, "rita", "/v1/kv/a")).json.value)
      for _, path in ipairs { "/v1/kv", "/v1/members", "/v1/nodes", "/v1/version" } do
        expect(200, curl(one, dir, "rita", path))
      end
      expect(403, curl(one, dir, "rita", "/v1/kv/a", "-X", "PUT", "-d", "2"))
      expect(403, curl(one, dir, "rita", "/v1/kv/a", "-X", "DELETE"))
      expect(403, curl(one, dir, "rita", "/v1/txn", "-d", '{"ops": []}'))
      expect(200, curl(one, dir, "otto", "/v1/txn", "-d", '{"ops": [{"put": "b", "value": "1"}]}'))
      for _, name in ipairs { "rita", "otto" } do
        expect(403, curl(one, dir, name, "/v1/certs"))
        expect(403, curl(one, dir, name, "/v1/certs", "-d", "{}"))
        expect(403, curl(one, dir, name, "/v1/certs/otto", "-X", "DELETE"))
        expect(403, curl(one, dir, name, "/v1/nodes/1/remove", "-d", "{}"))
        expect(403, curl(one, dir, name, "/v1/command", "-d", "{}"))
        expect(403, curl(one, dir, name, "/v1/lua", "-d", "{}"))
        expect(403, curl(one, dir, name, "/v1/backup"))
      end
      expect(401, curl(one, dir, nil, "/v1/status"))
    end
    -- By the name of the loopback, too.
    local byname = proc.run({ "curl", "-sS", "--cacert", dir .. "/ca.crt", "--cert", dir .. "/rita.crt", "--key", dir
      .. "/rita.key", "https://localhost:" .. m[1].remote_port .. "/v1/version" })
    assert.equal(0, byname.code, byname.err)

    -- The line that is printed works as it stands.
    local said = m[1]:cli("cert", "issue", "paste", "--role", "reader", "--out", dir .. "/of paste")
    assert.equal(0, said.code, said.err)
    local line = assert(said.out:match("\n  (curl .*)$"))
    local pasted = proc.run({ "sh", "-c", line })
    assert.truthy(pasted.out:find("cluster_id", 1, true), pasted.err .. line)
  end))

  it("are made with care", cluster.scenario(function(t)
    local m = t:cluster(1)[1]
    local dir = t:folder("certs")
    local first = issue(m, dir, "anna", "reader")
    local key = proc.read_file(dir .. "/anna.key")
    assert.equal("exists", m:fails("cert", "issue", "anna", "--role", "operator", "--out", dir).code)
    assert.equal(key, proc.read_file(dir .. "/anna.key"))
    -- Elsewhere there is no file in the way, but the name is taken.
    assert.equal("exists", m:fails("cert", "issue", "anna", "--role", "reader", "--out", t:folder("other")).code)
    assert.is_nil(require("luv").fs_stat(t.root .. "/other/anna.key"))
    expect(200, curl(m, dir, "anna", "/v1/status"))
    assert.equal(0, proc.run({ "cp", "-r", dir, t.root .. "/old" }).code)
    local of_before = watch(m, dir, "anna")
    local second = issue(m, dir, "anna", "operator", "--force")
    local of_after = watch(m, dir, "anna")
    cluster.wait_for("the watch by the old certificate to be cut", 2, function()
      return of_before.ended(), of_before.out
    end)
    m:json("kv", "put", "seen", "1")
    cluster.wait_for("the other one to go on", 5, function() return of_after.out:find("seen", 1, true) end)
    of_after.process:kill("sigkill")
    assert.are_not.equal(first.serial, second.serial)
    assert.are_not.equal(key, proc.read_file(dir .. "/anna.key"))
    expect(200, curl(m, dir, "anna", "/v1/kv/a", "-X", "PUT", "-d", "1"))
    expect(403, curl(m, t.root .. "/old", "anna", "/v1/kv/a"))
    expect(403, curl(m, t.root .. "/old", "anna", "/v1/status"))

    for _, name in ipairs { "ca", "../x", "0123456789abcdefghijklmnop", "a b", "17", "x.key/" } do
      assert.equal("invalid", m:fails("cert", "issue", name, "--role", "reader", "--out", dir).code, name)
    end
    assert.equal("invalid", m:fails("cert", "issue", "x", "--role", "manager", "--out", dir).code)
    assert.equal("invalid", m:fails("cert", "issue", "x", "--role", "reader", "--ttl", "never", "--out", dir).code)
    assert.equal("invalid", m:fails("cert", "issue", "x", "--role", "reader", "--ttl", "731d", "--out", dir).code)
    assert.equal("not_found", m:fails("cert", "revoke", "nobody").code)
    -- What is revoked has no more room for what it sends than anybody.
    local big = t.root .. "/big"
    proc.write_file(big, ("x"):rep(200 * 1024))
    local function send_big() return curl(m, dir, "otto", "/v1/kv/big", "-X", "PUT", "--data-binary", "@" .. big) end
    issue(m, dir, "otto", "operator")
    expect(200, send_big())
    m:json("cert", "revoke", "otto")
    expect(413, send_big())
    local rows = m:json("cert", "ls")
    assert.equal(1, #rows)
    assert.same({ "anna", "operator", true }, { rows[1].name, rows[1].role, rows[1].current_ca })
  end))

  it("end when they are revoked, at once and with what goes on", cluster.scenario(function(t)
    local m = t:cluster(3)
    local dir = t:folder("certs")
    issue(m[1], dir, "rita", "reader")
    issue(m[1], dir, "stays", "reader")
    local watches, kept = {}, watch(m[2], dir, "stays")
    for i, one in ipairs(m) do watches[i] = watch(one, dir, "rita") end
    m[3]:json("cert", "revoke", "rita")
    for i, one in ipairs(m) do
      for _, path in ipairs { "/v1/kv/a", "/v1/kv", "/v1/watch", "/v1/status", "/v1/nodes", "/readyz" } do
        expect(403, curl(one, dir, "rita", path))
      end
      cluster.wait_for("the watch to be cut", 2, function() return watches[i].ended(), watches[i].out end)
    end
    m[1]:json("kv", "put", "after", "1")
    cluster.wait_for("the other watch to go on", 5, function() return kept.out:find("after", 1, true), kept.out end)
    kept.process:kill("sigkill")
    assert.equal(1, #m[1]:json("cert", "ls"))
    expect(200, curl(m[1], dir, "stays", "/v1/status"))
  end))

  it("end when they expire", cluster.scenario(function(t)
    local m = t:cluster(1)[1]
    local dir = t:folder("certs")
    issue(m, dir, "brief", "operator", "--ttl", "3s")
    local held = watch(m, dir, "brief")
    cluster.wait_for("the certificate to expire", 20, function()
      local answer = curl(m, dir, "brief", "/v1/kv/a", "-X", "PUT", "-d", "1")
      return answer.status == 403, answer
    end)
    for _, path in ipairs { "/v1/kv", "/v1/status", "/v1/watch" } do
      local answer = expect(403, curl(m, dir, "brief", path))
      assert.equal("expired", answer.json.error.code)
    end
    expect(403, curl(m, dir, "brief", "/v1/renew", "-d", "{}"))
    cluster.wait_for("the watch to end with the next change", 5, function()
      m:json("kv", "put", "a", "2")
      return held.ended(), held.out .. held.err
    end)
    assert.truthy(held.out:find("expired", 1, true), held.out)
    -- The name is free again.
    issue(m, t:folder("again"), "brief", "reader")
  end))
end)

-- Puts one key after the other by curl's certificate @name on all of @managers in turn; what fails is kept.
local function put_loop(managers)
  local loop = { n = 0, failures = {}, conns = {} }
  for i, m in ipairs(managers) do loop.conns[i] = http.connect(m.socket) end
  local function go()
    if loop.stopped then
      loop.over = true
      return
    end
    local at = loop.n % #managers + 1
    loop.conns[at]:request("PUT", "/v1/kv/n" .. loop.n, "x", {}, function(err, answer)
      if err or answer.status ~= 200 then
        loop.failures[#loop.failures + 1] = err or ("%d: %s"):format(answer.status, answer.body)
      else
        loop.n = loop.n + 1
      end
      go()
    end)
  end
  function loop.stop()
    loop.stopped = true
    cluster.wait_for("the writes to end", 20, function() return loop.over end)
    for _, conn in ipairs(loop.conns) do conn:close() end
  end
  go()
  return loop
end

-- Waits until no change of the CA is under way at any of @managers; returns the last status.
local function wait_rotated(managers, generation)
  local s
  for _, m in ipairs(managers) do
    cluster.wait_for("the change of the CA to be done at " .. m.label, 60, function()
      s = m:json("cluster", "rotate-ca", "--status")
      return s.phase == "idle" and s.generation == generation, s
    end)
  end
  return s
end

-- Does @m refuse a node's certificate, in folder @dir, which the CA of before has signed?
local function refuses(m, dir)
  local result = proc.run({ "curl", "-sS", "-k", "--cert", dir .. "/tls/node.crt", "--key", dir .. "/tls/node.key",
    "https://" .. m:remote() .. "/v1/version" })
  return result.code ~= 0, result.out .. result.err
end

describe("the change of the CA", function()
  it("goes on under load and lets nothing fail", cluster.scenario(function(t)
    local m = t:cluster(3)
    local dir = t:folder("certs")
    issue(m[1], dir, "old", "reader")
    local old_key = subject_key(m[1].dir .. "/tls/ca.crt")
    for i, one in ipairs(m) do
      assert.equal(old_key, authority_key(one.dir .. "/tls/node.crt"))
      assert.equal(0, proc.run({ "cp", "-r", one.dir, t.root .. "/before" .. i }).code)
    end
    local events = proc.begin({ cluster.symphony, "--socket", m[2].socket, "kv", "watch", "n" })
    local loop = put_loop(m)
    cluster.wait_for("the writes to flow", 10, function() return loop.n > 20, loop end)

    assert.is_true(m[3]:json("cluster", "rotate-ca", "--yes").started)
    wait_rotated(m, 4)
    local n = loop.n
    cluster.wait_for("the writes to go on", 10, function() return loop.n > n + 20, loop end)
    loop.stop()
    assert.same({}, loop.failures)
    cluster.wait_for("the watch to have seen them all", 10, function()
      return events.out:find(("n%d\n"):format(loop.n - 1)) or events.out:find(("n%d "):format(loop.n - 1)),
        events.out:sub(-200) .. events.err
    end)
    assert.is_nil(events.process.code)
    events.process:kill("sigint")

    local new_key = subject_key(m[1].dir .. "/tls/ca.crt")
    assert.are_not.equal(old_key, new_key)
    for i, one in ipairs(m) do
      assert.equal(new_key, subject_key(one.dir .. "/tls/ca.crt"))
      assert.equal(new_key, authority_key(one.dir .. "/tls/node.crt"))
      assert.equal(1, select(2, proc.read_file(one.dir .. "/tls/ca.crt"):gsub("BEGIN", "")))
      assert.equal(1, select(2, proc.read_file(one.dir .. "/tls/node.crt"):gsub("BEGIN", "")))
      assert.is_true(refuses(one, t.root .. "/before" .. i))
      assert.are_not.equal(0, curl(one, dir, "old", "/v1/status").code)
    end
    -- What was of the old CA is gone; new tokens and certificates work.
    assert.same({}, m[1]:json("cert", "ls"))
    assert.same({}, m[1]:json("token", "ls"))
    local late = t:manager():start()
    assert.equal("unauthenticated", late:fails("manager", "join", m[1]:remote(), "--token", t.tokens.manager).code)
    local token = m[2]:json("token", "create", "--role", "manager").token
    late:json("manager", "join", m[1]:remote(), "--token", token)
    issue(m[1], dir, "new", "reader")
    expect(200, curl(late, dir, "new", "/v1/status"))

    for _, one in ipairs(t.managers) do one:stop() end
    for _, one in ipairs(t.managers) do one:start() end
    t:wait_voters(3, m[1])
    for _, one in ipairs(t.managers) do
      cluster.wait_for("a write after the restart", 20, function()
        local put = one:cli("--json", "kv", "put", "restarted", one.label)
        return put.code == 0, put.err
      end)
      expect(200, curl(one, dir, "new", "/v1/kv/restarted"))
    end
  end))

  it("takes the workers along, which go on as they are", cluster.scenario(function(t)
    local m = t:cluster(1)[1]
    local workers = t:join_workers(2, m)
    local old_key = subject_key(m.dir .. "/tls/ca.crt")
    assert.is_true(m:json("cluster", "rotate-ca", "--yes").started)
    wait_rotated({ m }, 4)
    local new_key = subject_key(m.dir .. "/tls/ca.crt")
    assert.are_not.equal(old_key, new_key)
    for _, w in ipairs(workers) do
      assert.is_true(w:is_running())
      assert.equal(new_key, authority_key(w.dir .. "/tls/node.crt"))
      cluster.wait_for(w.label .. " to drop the old CA", 20, function()
        return not proc.read_file(w.dir .. "/tls/ca.crt"):find("BEGIN.*BEGIN")
      end)
      assert.equal(new_key, subject_key(w.dir .. "/tls/ca.crt"))
    end
    t:wait_status(workers, "ready", m, 10)
    for _, row in ipairs(m:json("events", "--kind", "node.down")) do error("down meanwhile: " .. row.name) end
  end))

  it("waits for a manager that is down, takes tokens of both CAs meanwhile, and survives its leader",
    cluster.scenario(function(t)
    local m = t:cluster(3)
    local dir = t:folder("certs")
    issue(m[1], dir, "rita", "reader")
    local leader = t:leader()
    local down = leader == m[3] and m[2] or m[3]
    down:crash()
    assert.is_true(leader:json("cluster", "rotate-ca", "--yes", "--wait-clients").started)
    local s = cluster.wait_for("it to wait for the one that is down", 20, function()
      local found = leader:json("cluster", "rotate-ca", "--status")
      return #found.waiting == 1 and found, found
    end)
    assert.equal("both", s.phase)
    assert.equal(leader:json("cluster", "rotate-ca", "--yes", "--wait-clients").started, false)
    assert.truthy(leader:cli("cluster", "rotate-ca", "--status").out:find("waits for 1 of 3", 1, true))
    assert.same({ "rita" }, s.clients)
    assert.equal(2, s.tokens)
    -- Everything is served meanwhile, and a token of the old CA is good.
    expect(200, curl(leader, dir, "rita", "/v1/status"))
    local fourth = t:manager():start()
    fourth:json("manager", "join", leader:remote(), "--token", t.tokens.manager)

    -- It comes back, and its absence has cost nothing but time; now only rita's certificate is of the old CA.
    down:start()
    cluster.wait_for("every node to have a new certificate", 60, function()
      local found = down:json("cluster", "rotate-ca", "--status")
      return found.phase == "renew" and #found.waiting == 0, found
    end)
    local old_token = t.tokens.manager
    local new_token = fourth:json("token", "create", "--role", "manager").token
    assert.are_not.equal(old_token:match("SYMTKN%-1%-(%w+)"), new_token:match("SYMTKN%-1%-(%w+)"))
    for _, token in ipairs { old_token, new_token } do
      t:manager():start():json("manager", "join", down:remote(), "--token", token)
    end
    expect(200, curl(down, dir, "rita", "/v1/status"))

    t:leader():crash()
    local _, others = t:leader()
    issue(others[1], dir, "rita", "reader", "--force")
    for _, one in ipairs(t.managers) do
      if not one:is_running() then one:start() end
    end
    wait_rotated(t.managers, 4)
    for _, one in ipairs(t.managers) do expect(200, curl(one, dir, "rita", "/v1/status")) end
    local left = others[1]:json("token", "ls")
    assert.equal(1, #left)
  end))

  it("goes on when its leader is killed in the middle", cluster.scenario(function(t)
    local m = t:cluster(3)
    for round = 1, 3 do
      local leader, others = t:leader()
      others[1]:json("cluster", "rotate-ca", "--yes")
      leader:crash()
      t:leader()
      leader:start()
      wait_rotated(m, 1 + 3 * round)
      t:wait_voters(3, m[1])
    end
  end))
end)
