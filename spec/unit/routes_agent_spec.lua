local fake = require "spec.unit.cluster_fake"
local sandbox = require "spec.unit.policy_fake"
local json = require "symphony.json"
local router = require "symphony.api.router"
local state = require "symphony.cluster.state"
local sys = require "sym.sys"

describe("what a worker's certificate opens", function()
  local clock, real

  -- A request of worker @id; status, code of the error.
  local function ask(id, method, path, body, query)
    local req = fake.ask(method, path, { body = body and json.encode(body), query = query,
      peer = { tls = true, addr = "192.0.2.1", cn = id, ou = "worker", fingerprint = "f" .. id } })
    local answer = req:json()
    return req.status, answer.error and answer.error.code
  end

  local function add(id)
    fake.apply { ops = { state.put("/node/" .. id, { node_id = id, name = id, role = "worker", fingerprint = "f" .. id,
      remote_address = "10.0.0.1:1", gossip_address = "10.0.0.1:2", labels = {} }),
      state.put("/fingerprint/f" .. id, id) } }
  end

  -- Asks until it is told to wait; how often it was heard.
  local function insist(most, ...)
    for i = 1, most do
      local status, code = ask(...)
      if code == "busy" then
        assert.equal(503, status)
        return i - 1
      end
    end
    error "it is never told to wait"
  end

  before_each(function()
    fake.reset()
    router.reset()
    require("symphony.api.routes_agent").routes(router)
    clock, real = 1000000, sys.mono_ms
    sys.mono_ms = function() return clock end
  end)
  after_each(function() sys.mono_ms = real end)

  local REPORT = { status = "ready", starts = 1, instance = "ab" }

  it("costs no rounds of the quorum without end, whatever is reported", fake.task(function()
    fake.make {}
    add "0w1"
    add "0w2"
    assert.equal(200, (ask("0w1", "POST", "/v1/agent/report", REPORT)))
    assert.equal(59, insist(100, "0w1", "POST", "/v1/agent/report", REPORT))
    local reads = fake.reads
    assert.equal("busy", select(2, ask("0w1", "POST", "/v1/agent/report", REPORT)))
    assert.equal("busy", select(2, ask("0w1", "POST", "/v1/agent/report", {})))
    assert.equal(reads, fake.reads)
    -- Others are not concerned, and after a while it is heard again.
    assert.equal(200, (ask("0w2", "POST", "/v1/agent/report", REPORT)))
    clock = clock + 1100
    assert.equal(1, insist(100, "0w1", "POST", "/v1/agent/report", REPORT))
  end))

  it("gives no listings without end", fake.task(function()
    fake.make {}
    add "0w1"
    local status, code = ask("0w1", "GET", "/v1/agent", nil, "starts=1&instance=xyz&min=0")
    assert.same({ 400, "invalid" }, { status, code })
    assert.equal(29, insist(100, "0w1", "GET", "/v1/agent", nil, "starts=1&instance=xyz&min=0"))
  end))

  it("asks the leader's services and policies for nothing without end", fake.task(function()
    sandbox.reset()
    fake.make {}
    add "0w1"
    add "0w2"
    for _, hook in ipairs { "admit.join", "admit.change", "place.block" } do
      require("symphony.policy.store").set(hook, sandbox.source(hook, [[return refuse("no")]]), "me")
    end
    require("symphony.policy.engine").list()
    local asked = #sandbox.calls
    local proposal = { kind = "block", id = "a", uid = "u", name = "none", body = {} }
    for path, most in pairs { ["/v1/agent/propose"] = 200, ["/v1/agent/status"] = 120 } do
      assert.equal(most, insist(300, "0w1", "POST", path, proposal), path)
      assert.is_true(select(2, ask("0w2", "POST", path, proposal)) ~= "busy")
    end
    -- A node that leaves is gone, whatever anybody says.
    assert.equal(200, (ask("0w2", "POST", "/v1/agent/leave", {})))
    assert.equal(asked, #sandbox.calls)
  end))
end)
