-- The certificates of workers: how they renew, and how the CA is changed under them.
local clients = require "spec.support.clients"
local cluster = require "spec.support.cluster"
local proc = require "spec.support.proc"

-- A certificate for the key of worker @w, stopped, by the CA of manager @m; from and to in seconds from now. It takes
-- the place of what the worker has.
local SIGN = [[
local crypto, store, json = require "sym.crypto", require "sym.store", require "symphony.json"
local cluster = json.decode(store.get("/cluster").value)
local ca_key = crypto.key_load(json.decode(store.get("/secret/ca").value).key)
local csr = crypto.csr(crypto.key_load(require("sym.sys").read_file(%q)), "x")
return { cert = crypto.cert_sign(ca_key, cluster.ca, csr, { cn = %q, ou = "worker", o = cluster.id, server = true,
  not_before = math.floor(os.time() + %d), not_after = math.floor(os.time() + %d) }) }]]

local function put_certificate(m, w, from, to)
  local made = clients.evaluate(m, SIGN:format(w.dir .. "/tls/node.key", w.node_id, from, to))
  proc.write_file(w.dir .. "/tls/node.crt", made.cert)
end

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
      put_certificate(m, w[i], table.unpack(life))
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
