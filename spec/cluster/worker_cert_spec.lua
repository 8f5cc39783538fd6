-- The certificates of workers: how they renew, and how the CA is changed under them.
local clients = require "spec.support.clients"
local cluster = require "spec.support.cluster"
local http = require "spec.support.http"
local json = require "spec.support.json"
local proc = require "spec.support.proc"

-- Waits until worker @w has another certificate than it had, connected and without a complaint; its block status.
local function wait_renewed(w, m)
  return cluster.wait_for("a new certificate of " .. w.label, 40, function()
    if not w:is_running() then error(w.label .. " has ended:\n" .. w:log_tail(20), 0) end
    local s = w:json("block", "status")
    return s.certificate_expires > os.time() + 80 * 86400 and s.manager and s, s
  end), m
end

local function names_of(path)
  local result = proc.run({ "openssl", "x509", "-in", path, "-noout", "-ext", "subjectAltName" })
  local out = {}
  for name in result.out:gmatch("DNS:([%w.%-]+)") do out[#out + 1] = name end
  return out
end

describe("the certificate of a worker", function()
  it("renews by itself when it is due, and when it has expired", cluster.scenario(function(t)
    local m = t:cluster(1)[1]
    local w = t:join_workers(2, m)
    local before = t:nodes(m)
    for i, life in ipairs { { -80 * 86400, 3600 }, { -90 * 86400, -3600 } } do
      assert.equal(0, (w[i]:stop()))
      proc.write_file(w[i].dir .. "/tls/node.crt", clients.sign_worker(m, w[i], table.unpack(life)))
      w[i]:start()
    end
    for _, one in ipairs(w) do
      wait_renewed(one)
      assert.equal(1, select(2, proc.read_file(one.dir .. "/tls/node.crt"):gsub("BEGIN", "")))
      assert.same({ one.node_id, "worker.symphony.invalid" }, names_of(one.dir .. "/tls/node.crt"))
    end
    local rows = t:wait_status(w, "ready", m)
    for _, one in ipairs(w) do
      local row = rows[one.node_id]
      assert.equal(before[one.node_id].fingerprint, row.fingerprint) -- the key is the same
      assert.equal(one:json("block", "status").certificate_expires, row.certificate_expires)
    end
    -- It is in use at once, at both of its ends.
    local answer = assert(clients.secure(w[2], clients.own(w[1]), "GET", "/v1/version"))
    assert.equal(200, answer.status, answer.body)
    -- And on the disk.
    for _, one in ipairs(w) do
      one:crash()
      one:start()
    end
    for _, one in ipairs(w) do wait_renewed(one) end
  end))
end)

-- The subject key of the only CA in a PEM file, or the key by which the certificate in one was signed, in hex.
local function key_id(path, extension)
  local result = proc.run({ "openssl", "x509", "-in", path, "-noout", "-ext", extension })
  assert.equal(0, result.code, result.err)
  return (result.out:match("%x[%x:]+%x%s*$"):gsub("%s", ""))
end

-- Looks at `node ls` all the time, over a socket of its own: what each worker's status and CA have ever been.
local function look_on(m)
  local conn = http.connect(m.socket)
  local seen = { status = {}, ca = {}, n = 0 }
  local function go()
    if seen.stopped then
      seen.over = true
      return
    end
    conn:request("GET", "/v1/nodes?stale=ok", nil, {}, function(err, answer)
      assert(not err and answer.status == 200, err or answer.body)
      local doc = json.decode(answer.body)
      for _, row in ipairs(doc.nodes or doc) do
        if row.role == "worker" then
          seen.status[row.status] = row.node_id
          if row.ca then seen.ca[row.ca] = true end
        end
      end
      seen.n = seen.n + 1
      go()
    end)
  end
  function seen.stop()
    seen.stopped = true
    cluster.wait_for("the last look", 20, function() return seen.over end)
    conn:close()
  end
  go()
  return seen
end

local function wait_idle(m, generation)
  return cluster.wait_for("the change of the CA to be done", 60, function()
    local s = m:json("cluster", "rotate-ca", "--status")
    return s.phase == "idle" and s.generation == generation, json.encode(s)
  end)
end

describe("the change of the CA", function()
  it("takes the workers along, which stay ready, and waits for one that is stopped", cluster.scenario(function(t)
    local m = t:cluster(3, { steady = true })
    local w = t:join_workers(3, m[1])
    t:wait_status(w, "ready", m[1])
    local looks = look_on(m[2])
    local began = proc.now()
    m[3]:json("cluster", "rotate-ca", "--yes")
    wait_idle(m[1], 4)
    print(("\nrotate-ca with three managers and three workers: %.1f s"):format(proc.now() - began))
    looks.stop()
    assert.is_true(looks.n > 20, looks.n)
    assert.same({ "ready" }, (function()
      local list = {}
      for status in pairs(looks.status) do list[#list + 1] = status end
      return list
    end)())
    assert.is_true(looks.ca.both and looks.ca.new)
    local ca = key_id(m[1].dir .. "/tls/ca.crt", "subjectKeyIdentifier")
    local all = table.move(w, 1, #w, #m + 1, table.move(m, 1, #m, 1, {}))
    for _, one in ipairs(all) do
      assert.equal(ca, key_id(one.dir .. "/tls/node.crt", "authorityKeyIdentifier"), one.label)
      cluster.wait_for(one.label .. " to have dropped the old CA", 20, function()
        local text = proc.read_file(one.dir .. "/tls/ca.crt")
        return select(2, text:gsub("BEGIN", "")) == 1 and key_id(one.dir .. "/tls/ca.crt", "subjectKeyIdentifier") == ca
      end)
    end
    for _, row in pairs(t:nodes(m[1])) do assert.is_nil(row.ca) end
    -- One that is stopped is waited for, and named.
    assert.equal(0, (w[1]:stop()))
    assert.equal(0, proc.run({ "cp", "-a", w[1].dir, t.root .. "/before" }).code)
    m[1]:json("cluster", "rotate-ca", "--yes")
    local s = cluster.wait_for("only the one that is stopped to be waited for", 30, function()
      local found = m[1]:json("cluster", "rotate-ca", "--status")
      return #found.waiting == 1 and found, json.encode(found)
    end)
    assert.same({ "both", w[1].node_id }, { s.phase, s.waiting[1].node_id })
    local said = m[1]:cli("cluster", "rotate-ca", "--status").out
    assert.truthy(said:find(w[1].name, 1, true), said)
    local rows = t:nodes(m[2])
    assert.same({ "old", "both", "both" }, { rows[w[1].node_id].ca, rows[w[2].node_id].ca, rows[m[1]:json("manager",
      "status").node_id].ca })
    w[1]:start()
    wait_idle(m[2], 7)
    t:wait_status(w, "ready", m[3])
    -- What it was before, with a certificate of the CA that is no more, is refused, and says what to do.
    assert.equal(0, (w[1]:stop()))
    for _, name in ipairs { "ca.crt", "node.crt" } do
      proc.write_file(w[1].dir .. "/tls/" .. name, assert(proc.read_file(t.root .. "/before/tls/" .. name)))
    end
    w[1]:start()
    local warned = cluster.wait_for("it to say why it is alone", 20, function()
      local status = w[1]:json("block", "status")
      local text = table.concat(status.warnings, "\n")
      return text:find("CA", 1, true) and text, json.encode(status) .. w[1]:log_tail(10)
    end)
    assert.truthy(warned:find("block leave", 1, true), warned)
    assert.truthy(w[1]:log():find(warned:match("no manager has[^(]*"), 1, true), w[1]:log_tail(10))
    local old = t.root .. "/before/tls/node"
    assert.are_not.equal(0, proc.run({ "curl", "-sSk", "--cert", old .. ".crt", "--key", old .. ".key", "https://"
      .. m[1]:remote() .. "/v1/version" }).code)
    -- What it says works.
    w[1]:json("block", "leave", "--force")
    local token = m[1]:json("token", "create", "--role", "worker").token
    local again = w[1]:json("block", "join", m[1]:remote(), "--token", token)
    assert.are_not.equal(w[1].node_id, again.node_id)
  end))
end)
