local fake = require "spec.unit.cluster_fake"
local async = require "symphony.async"
local basis = require "symphony.cluster.basis"
local raft = require "sym.raft"
local router = require "symphony.api.router"
local state = require "symphony.cluster.state"

local MANAGER = { tls = true, addr = "192.0.2.1", cn = "0m2", ou = "manager", fingerprint = "aa" }
local OLGA = { tls = true, addr = "192.0.2.1", cn = "olga", ou = "operator", fingerprint = "bb" }
local FORWARDED = { ["symphony-forwarded"] = "1", ["symphony-basis"] = "bb operator olga" }

local function fill()
  fake.apply { ops = {
    state.put("/node/0m2", { node_id = "0m2", name = "m2", role = "manager", raft_node_id = 2, fingerprint = "aa" }),
    state.put("/fingerprint/aa", "0m2"), state.put("/fingerprint/bb", "operator olga"),
    state.put("/client/olga", { name = "olga", role = "operator", fingerprint = "bb" }) } }
end

local function make()
  fake.make {}
  fill()
end

local function revoke()
  fake.apply { ops = { state.delete("/fingerprint/bb"), state.delete("/client/olga") } }
end

local function ask(peer, headers)
  local req = fake.ask("POST", "/write", { peer = peer, headers = headers })
  return req.status, (req:json().error or {}).code
end

describe("what a request rests on", function()
  before_each(function()
    fake.reset()
    router.reset()
  end)

  it("is what the state says of the key of who asks, and of whom it is passed on for", function()
    local function of(peer, who, headers)
      return basis.of(fake.request("GET", "/", { peer = peer, headers = headers }), who)
    end
    local olga = { key = "/fingerprint/bb", value = "operator olga" }
    assert.is_nil(of({ unix = true }, { kind = "control" }))
    assert.is_nil(of({ tls = true }, { kind = "none" }))
    local list = of(OLGA, { kind = "operator", id = "olga", client = {} })
    assert.same({ olga }, list)
    assert.equal(FORWARDED["symphony-basis"], basis.to_header(list))
    assert.is_nil(basis.to_header(nil))
    local manager = { kind = "manager", id = "0m2" }
    assert.same({ { key = "/fingerprint/aa", value = "0m2" } }, of(MANAGER, manager))
    assert.same({ { key = "/fingerprint/aa", value = "0m2" }, olga }, of(MANAGER, manager, FORWARDED))
    -- Of others it is no word.
    assert.same({ olga }, of(OLGA, { kind = "operator", id = "olga", client = {} }, FORWARDED))
    for _, text in ipairs { "", "bb", "/x operator olga", "bb " .. ("x"):rep(300) } do
      local ok, err = pcall(of, MANAGER, manager, { ["symphony-forwarded"] = "1", ["symphony-basis"] = text })
      assert.same({ false, "invalid" }, { ok, err.code })
    end
  end)

  it("holds where the change is made, or nothing is changed", fake.task(function()
    make()
    router.route("POST", "/write", {}, function()
      local ok, err = state.update(function() return { ops = { state.put("/kv/a", "1") } }, true end)
      if not ok then return nil, err end
      return 200, {}
    end)
    for _, from in ipairs { { OLGA }, { MANAGER, FORWARDED } } do
      assert.equal(200, (ask(table.unpack(from))))
      -- It is taken out when all has been looked at, and before what was decided is in the log.
      fake.before_submit = function()
        fake.before_submit = nil
        revoke()
        fake.apply { ops = { state.delete("/kv/a") } }
      end
      assert.same({ 403, "denied" }, { ask(table.unpack(from)) })
      assert.is_nil(fake.kvs["/kv/a"])
      fill()
    end
  end))

  it("is looked at by the leader before anything else is done", fake.task(function()
    make()
    local asked = 0
    router.route("POST", "/write", { leader_only = true }, function()
      asked = asked + 1
      return 200, {}
    end)
    assert.equal(200, (ask(MANAGER, FORWARDED)))
    local reads = fake.reads
    assert.equal(200, (ask(MANAGER, FORWARDED)))
    assert.equal(reads, fake.reads)
    revoke()
    assert.same({ 403, "denied" }, { ask(MANAGER, FORWARDED) })
    -- The one that passes it on may know more, and then this manager makes sure.
    assert.equal(reads + 1, fake.reads)
    fake.read_error = { code = "no_quorum", message = "nobody answers" }
    assert.same({ 503, "no_quorum" }, { ask(MANAGER, FORWARDED) })
    assert.equal(2, asked)
    -- Who does not lead says that, which is said again to who does.
    fake.status.state = "follower"
    assert.same({ 503, "not_leader" }, { ask(MANAGER, FORWARDED) })
  end))

  it("goes with what a follower passes on", fake.task(function()
    make()
    local leader = require "symphony.cluster.leader"
    fake.apply { ops = { state.put("/raft/2", "0m2"), state.put("/node/0m2", { node_id = "0m2", name = "m2",
      role = "manager", raft_node_id = 2, fingerprint = "aa", remote_address = "r:2" }) } }
    fake.status.leader, fake.status.state = 2, "follower"
    fake.answer = function() return nil, { status = 200, body = "{}" } end
    router.route("POST", "/write", { leader_only = true }, function() error "it is not for us" end)
    router.route("POST", "/calls", {}, function() return 200, leader.call("POST", "/x", {}) end)
    assert.equal(200, (ask(OLGA)))
    -- What the client itself says of that counts for nothing.
    assert.equal(200, (ask(OLGA, { ["symphony-basis"] = "aa 0m2" })))
    assert.equal(200, (ask(MANAGER)))
    local sent = {}
    for i, request in ipairs(fake.requests) do sent[i] = request.headers["symphony-basis"] end
    assert.same({ "bb operator olga", "bb operator olga", "aa 0m2" }, sent)
    -- As with what a route asks of the leader for its client.
    assert.equal(200, fake.ask("POST", "/calls", { peer = OLGA }).status)
    assert.equal("bb operator olga", fake.requests[4].headers["symphony-basis"])
    leader.call("POST", "/x", {})
    assert.is_nil(fake.requests[5].headers["symphony-basis"])
  end))

  it("leaves the numbers of a txn's own compares as they are", fake.task(function()
    make()
    async.bind { { key = "/fingerprint/aa", value = "0m2" }, { key = "/fingerprint/bb", value = "operator olga" } }
    local txn = { compare = { state.absent("/kv/a"), { key = "/kv/b", value = "1" } }, ops = {} }
    local result = assert(state.submit(txn))
    assert.same({ "conflict", 2 }, { result.status, result.failed })
    assert.equal(2, #txn.compare)
    -- Behind them all: what is recorded of a txn with an id is read by others, who rest on something else.
    local sent
    local submit = raft.submit
    raft.submit = function(given, ms, cb)
      sent = given.compare
      return submit(given, ms, cb)
    end
    fake.apply { ops = { state.put("/kv/b", "1"), state.delete("/fingerprint/bb") } }
    local ok, err = state.submit(txn)
    assert.same({ nil, "denied" }, { ok, err.code })
    assert.same({ "/kv/a", "/kv/b", "/fingerprint/aa", "/fingerprint/bb" },
      { sent[1].key, sent[2].key, sent[3].key, sent[4].key })
    -- Who is out hears nothing of what the state has.
    fake.apply { ops = { state.delete("/kv/b") } }
    ok, err = state.submit(txn)
    assert.same({ nil, "denied" }, { ok, err.code })
    fill()
    -- What was done by another way before is for who asks to make out.
    raft.submit = function(_, _, cb) cb(nil, { status = "conflict", failed = 2, revision = 1, repeated = true }) end
    result = assert(state.submit { id = ("x"):rep(16), compare = {}, ops = {} })
    raft.submit = submit
    assert.same({ "conflict", 2 }, { result.status, result.failed })
  end))

  it("is that of the tasks that it waits for, and of no others", fake.task(function()
    async.bind "x"
    assert.equal("x", async.with_timeout(1000, async.bound))
    assert.equal("x", async.gather({ async.bound })[1].results[1])
    assert.is_nil((async.spawn(async.bound):wait()))
    async.bind(nil)
    assert.is_nil((async.with_timeout(1000, async.bound)))
  end))
end)
