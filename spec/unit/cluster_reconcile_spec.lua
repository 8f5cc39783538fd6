local fake = require "spec.unit.cluster_fake"
local async = require "symphony.async"
local errors = require "symphony.errors"
local identity = require "symphony.cluster.identity"
local json = require "symphony.json"
local leader = require "symphony.cluster.leader"
local leave = require "symphony.cluster.leave"
local reconcile = require "symphony.cluster.reconcile"
local remove = require "symphony.cluster.remove"
local state = require "symphony.cluster.state"

local add_node, add_member = fake.add_node, fake.add_member

local function turns()
  for _ = 1, 30 do
    if reconcile.turn() >= 20 then return end
  end
  error("it never comes to rest: " .. table.concat(fake.changes, ", "))
end

local function cluster_of_one(fn)
  return fake.task(function()
    fake.make { name = "first" }
    reconcile.stop()
    fn()
  end)
end

describe("the leader's reconcile loop", function()
  before_each(function() fake.reset() end)

  it("takes newcomers in, one step after the other", cluster_of_one(function()
    add_node(2)
    turns()
    assert.same({ "add 2 h:2", "assign 2 standby" }, fake.changes)
    add_node(3)
    turns()
    assert.same({ "add 2 h:2", "assign 2 standby", "add 3 h:3", "assign 3 standby", "assign 2 voter",
      "assign 3 voter" },
      fake.changes)
  end))

  it("takes out whoever is to go, and then his traces", cluster_of_one(function()
    add_member(2)
    add_member(3)
    assert(remove.serve("m3", {}))
    reconcile.stop()
    turns()
    assert.same({ "remove 3", "assign 2 standby" }, fake.changes)
    for _, prefix in ipairs { "/node/", "/raft/", "/name/", "/fingerprint/" } do
      assert.equal(2, #state.list_raw(prefix), prefix)
    end
  end))

  it("takes out one that raft never got", cluster_of_one(function()
    add_node(2)
    assert(remove.serve("m2", {}))
    reconcile.stop()
    turns()
    assert.same({}, fake.changes)
    assert.equal(1, #state.list_raw("/node/"))
  end))

  it("does nothing as a follower, during a change, and without a quorum", cluster_of_one(function()
    add_node(2)
    fake.status.state = "follower"
    reconcile.turn()
    fake.status.state, fake.status.changing = "leader", true
    reconcile.turn()
    fake.status.changing = false
    fake.read_error = { code = "no_quorum", message = "none" }
    reconcile.turn()
    assert.same({}, fake.changes)
  end))

  it("tries again after a failure", cluster_of_one(function()
    add_node(2)
    fake.change_error = { code = "timeout", message = "not caught up" }
    assert.is_true(reconcile.turn() >= 20)
    fake.change_error = nil
    turns()
    assert.same({ "add 2 h:2", "add 2 h:2", "assign 2 standby" }, fake.changes)
  end))

  it("wakes up when the state changes", fake.task(function()
    fake.make()
    add_node(2)
    for _ = 1, 1000 do
      if #fake.changes >= 2 then break end
      async.sleep(5)
    end
    assert.same({ "add 2 h:2", "assign 2 standby" }, fake.changes)
  end))
end)

describe("remove.serve", function()
  before_each(function() fake.reset() end)

  it("only says what it would do with plan", cluster_of_one(function()
    add_member(2)
    add_member(3)
    local before = fake.revision
    local answer = remove.serve("1", { plan = true })
    assert.equal(before, fake.revision)
    assert.is_true(answer.allowed)
    assert.equal(3, #answer.steps)
    assert.truthy(answer.steps[1]:find("leadership"))
  end))

  it("refuses what would cost the quorum unless it is forced", cluster_of_one(function()
    add_member(2)
    add_member(3, "voter", true)
    local ok, err = pcall(remove.serve, "2", {})
    assert.is_false(ok)
    assert.equal("conflict", err.code)
    assert.truthy(err.message:find("quorum"))
    assert.is_false(remove.serve("2", { plan = true }).allowed)
    assert(remove.serve("2", { force = true }))
    assert.is_true(state.get("/node/0member2").removing.forced)
    assert(remove.serve("3", {}))
  end))

  it("refuses by force, too, what could never be carried out, and leaves no mark", cluster_of_one(function()
    add_member(2, "standby", true)
    for _, force in ipairs { false, true } do
      local ok, err = pcall(remove.serve, "1", { force = force })
      assert.is_false(ok)
      assert.equal("conflict", err.code)
    end
    assert.is_nil(state.get("/node/" .. state.text("/raft/1")).removing)
  end))

  it("refuses the last one, forced or not, and who is not there", cluster_of_one(function()
    for _, force in ipairs { true, false } do
      local ok, err = pcall(remove.serve, "1", { force = force })
      assert.is_false(ok)
      assert.truthy(err.message:find("last"))
    end
    local ok, err = pcall(remove.serve, "nobody", {})
    assert.is_false(ok)
    assert.equal("not_found", err.code)
  end))
end)

describe("remove.serve_transfer", function()
  before_each(function() fake.reset() end)

  it("hands over to a voter that is up", cluster_of_one(function()
    add_member(2)
    add_member(3, "voter", true)
    add_member(4, "standby")
    for name, code in pairs { nobody = "not_found", m3 = "unreachable", m4 = "conflict" } do
      local ok, err = pcall(remove.serve_transfer, name)
      assert.is_false(ok)
      assert.equal(code, err.code, name)
    end
    assert.is_false(remove.serve_transfer("first").changed)
    assert.same({ raft_node_id = 2, name = "m2", changed = true }, remove.serve_transfer("m2"))
  end))

  it("says when there is nobody", cluster_of_one(function()
    local ok, err = pcall(remove.serve_transfer)
    assert.is_false(ok)
    assert.equal("conflict", err.code)
  end))
end)

describe("remove.run", function()
  before_each(function() fake.reset() end)

  -- The leader's remote port is this daemon's own here.
  local function answer_for_the_leader(opts)
    local name = opts.path:match("^/v1/nodes/(.*)/remove$")
    local ok, answer = pcall(remove.serve, name, json.decode(opts.body))
    if ok then return nil, { status = 200, body = json.encode(answer) } end
    return nil, { status = errors.http_status(answer), body = json.encode(errors.body(answer)) }
  end

  it("waits until it is done", fake.task(function()
    fake.make()
    add_member(2, "standby")
    fake.answer = answer_for_the_leader
    local answer = assert(remove.run("m2", {}))
    assert.equal(2, answer.raft_node_id)
    assert.equal(1, #state.list_raw("/node/"))
    local ok, err = remove.run("m2", {})
    assert.is_nil(ok)
    assert.equal("not_found", err.code)
  end))

  it("is how one leaves: out, wiped, and free to join again", fake.task(function()
    local made = fake.make()
    add_member(2, "standby")
    fake.answer = function(opts)
      local err, response = answer_for_the_leader(opts)
      -- The others carry it out; this one is told.
      async.spawn(function()
        async.sleep(5)
        fake.hooks.removed(nil, "not_found", "removed")
      end)
      return err, response
    end
    reconcile.stop()
    local answer = assert(leave.run {})
    assert.equal(made.node_id, answer.node_id)
    assert.is_nil(identity.me)
    assert.is_nil(fake.files["/dir/key.json"])
    assert.is_nil(fake.files["/dir/tls/node.key"])
  end))

  it("leaves without the others only when forced", fake.task(function()
    fake.make()
    add_member(2, "voter", true)
    fake.answer = function() return nil, { status = 503, body = '{"error":{"code":"no_quorum","message":"none"}}' } end
    local ok, err = leave.run {}
    assert.is_nil(ok)
    assert.equal("no_quorum", err.code)
    assert.truthy(err.hint:find("manager leave --force", 1, true), err.hint)
    assert.is_true(fake.started)
    assert(leave.run { force = true })
    assert.is_nil(identity.me)
  end))
end)

describe("leader.forward", function()
  before_each(function() fake.reset() end)
  local who = { kind = "none" }

  local function request(fields)
    local req = fake.request("POST", "/v1/join", fields)
    req.peer = req.peer.unix and { tls = true, addr = "192.0.2.7" } or req.peer
    return req
  end

  it("passes a request on with our certificate and where it came from", fake.task(function()
    fake.make()
    add_member(2)
    fake.status.leader, fake.status.state = 2, "follower"
    fake.answer = function() return nil, { status = 202, body = "{}" } end
    local status, body = leader.forward(request { body = "x", query = "a=b" }, {}, who)
    assert.same({ 202, "{}" }, { status, body })
    local sent = fake.requests[1]
    assert.same({ "r", 2, "/v1/join?a=b", "manager", "x" }, { sent.host, sent.port, sent.path, sent.role, sent.body })
    assert.equal("192.0.2.7", sent.headers["symphony-from"])
    assert.equal(identity.tls.cert, sent.tls.cert)
  end))

  it("never passes one on twice", fake.task(function()
    fake.make()
    local ok, err = pcall(leader.forward, request { headers = { ["symphony-forwarded"] = "1" } }, {}, who)
    assert.is_false(ok)
    assert.equal("not_leader", err.code)
    assert.equal(0, #fake.requests)
  end))

  it("believes a manager, and nobody else, where a request comes from", function()
    local req = request { headers = { ["symphony-from"] = "10.0.0.1" } }
    assert.equal("192.0.2.7", leader.origin(req, { kind = "none" }))
    assert.equal("192.0.2.7", leader.origin(req, { kind = "worker" }))
    assert.equal("10.0.0.1", leader.origin(req, { kind = "manager" }))
  end)

  it("tries again only what surely did not happen", function()
    assert.is_true(leader.again { code = "unreachable" })
    assert.is_false(leader.again { code = "timeout" })
    assert.is_false(leader.again { code = "closed" })
    assert.is_true(leader.again(nil, 503, { error = { code = "not_leader" } }))
    assert.is_false(leader.again(nil, 503, { error = { code = "no_quorum" } }))
    assert.is_false(leader.again(nil, 200, nil))
  end)

  it("asks the next leader when the first one has stepped down", fake.task(function()
    fake.make()
    add_member(2)
    add_member(3)
    fake.status.leader, fake.status.state = 2, "follower"
    fake.answer = function(opts)
      if opts.port == 2 then
        fake.status.leader = 3
        return nil, { status = 503, body = '{"error":{"code":"not_leader","message":"x"}}' }
      end
      return nil, { status = 200, body = '{"ok":true}' }
    end
    assert.same({ ok = true }, leader.call("POST", "/v1/x", {}))
    assert.equal(2, #fake.requests)
  end))

  it("does not say that something failed when it may have happened", fake.task(function()
    fake.make()
    fake.answer = function() return { code = "timeout", message = "no answer" } end
    local ok, err = leader.call("POST", "/v1/x", {})
    assert.is_nil(ok)
    assert.equal("outcome_unknown", err.code)
  end))

  it("is over once this manager has learned that it is out", fake.task(function()
    fake.make()
    fake.status.leader = 0
    local call = async.spawn(leader.call, "POST", "/v1/x", {})
    async.sleep(20)
    identity.me.removed = true
    local ok, err = call:wait()
    assert.is_nil(ok)
    assert.equal("removed", err.code)
  end))

  it("gives up in time without a leader", fake.task(function()
    fake.make()
    fake.status.leader = 0
    local patience_ms = leader.patience_ms
    assert.is_true(patience_ms < 5000)
    leader.patience_ms = 20
    local ok, err = leader.call("POST", "/v1/x", {})
    leader.patience_ms = patience_ms
    assert.is_nil(ok)
    assert.equal("no_quorum", err.code)
  end))
end)
