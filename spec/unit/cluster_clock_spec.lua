local fake = require "spec.unit.cluster_fake"
local clock = require "symphony.cluster.clock"
local crypto = require "sym.crypto"
local certs = require "symphony.cluster.certs"
local reconcile = require "symphony.cluster.reconcile"
local rotation = require "symphony.cluster.ca_rotation"
local state = require "symphony.cluster.state"
local sys = require "sym.sys"
local tokens = require "symphony.cluster.tokens"

local HOUR, DAY = 3600, 86400

describe("a wall clock", function()
  it("is believed while it goes as the other one does", function()
    local c = clock.new()
    assert.is_false(c:believed(0))
    assert.is_nil(c:look(1700000000, 50))
    assert.is_false(c:believed(50 + HOUR - 1))
    for i = 1, 100 do assert.is_nil(c:look(1700000000 + 60 * i + (i % 2) * 20, 50 + 60 * i)) end
    assert.is_true(c:believed(50 + 6000))
  end)

  it("is not for an hour after it was set, forward or back", function()
    local c = clock.new()
    c:look(1700000000, 0)
    assert.is_true(c:believed(HOUR))
    assert.equal(DAY, c:look(1700000000 + HOUR + DAY, HOUR))
    assert.is_false(c:believed(HOUR))
    assert.is_nil(c:look(1700000000 + HOUR + DAY + 10, HOUR + 10))
    assert.is_false(c:believed(2 * HOUR - 1))
    assert.equal(-DAY, c:look(1700000000 + 2 * HOUR - 1, 2 * HOUR - 1))
    assert.is_false(c:believed(3 * HOUR - 2))
    assert.is_true(c:believed(3 * HOUR))
  end)
end)

describe("a leader whose clock jumps", function()
  local mono, real = 1000000, nil

  before_each(function()
    fake.reset()
    clock.reset()
    real = sys.mono_ms
    sys.mono_ms = function() return mono end
  end)
  after_each(function()
    sys.mono_ms = real
    clock.reset()
  end)

  -- Both clocks go on, and what is done now and then is done.
  local function pass(seconds)
    mono, fake.now = mono + 1000 * seconds, fake.now + seconds
    reconcile.sweep()
    rotation.turn()
  end

  local function of_one(fn)
    return fake.task(function()
      fake.make { name = "first" }
      reconcile.stop()
      fn()
    end)
  end

  local function issue(name, ttl)
    local made, err = certs.issue { name = name, role = "reader", csr = crypto.csr({ name = "k" .. name }, name),
      ttl = ttl }
    if not made then error(err, 0) end
  end

  it("forgets nothing by it that has not expired", of_one(function()
    pass(0)
    pass(HOUR)
    local without = #tokens.list()
    assert.is_table(tokens.create { role = "worker", ttl = DAY })
    local count = without + 1
    issue("rita", DAY)
    fake.apply { ops = { state.put("/pending/x", { expires = fake.now + HOUR }) } }
    fake.now = fake.now + 365 * DAY
    pass(61)
    assert.same({ count, 1 }, { #tokens.list(), #certs.list() })
    assert.equal(0, #state.list("/pending/"))
    assert.truthy(fake.logged[#fake.logged]:find("set forward by 31536000 s", 1, true), fake.logged[#fake.logged])
    -- Set right again, nothing has happened.
    fake.now = fake.now - 365 * DAY
    for _ = 1, 3 do
      pass(HOUR)
      assert.same({ count, 1 }, { #tokens.list(), #certs.list() })
    end
    -- By a clock that can be believed they go.
    pass(3 * DAY)
    assert.same({ without, 0 }, { #tokens.list(), #certs.list() })
  end))

  it("forgets nothing when it was started with a wrong one", of_one(function()
    issue("rita", DAY)
    fake.now = fake.now + 365 * DAY
    pass(0)
    pass(61)
    assert.equal(1, #certs.list())
    pass(HOUR)
    assert.equal(0, #certs.list())
  end))

  it("takes no client certificate for expired that the old CA waits for", of_one(function()
    pass(0)
    pass(HOUR)
    issue("rita", DAY)
    local task = rotation.begin { wait_clients = true }
    assert.is_true(task.started)
    local cluster, kv = state.get("/cluster")
    cluster.rotation.phase = "renew"
    cluster.sign = cluster.rotation.new
    local id = require("symphony.cluster.identity").me.node_id
    local n, nkv = state.get("/node/" .. id)
    n.trust, n.issuer = cluster.trust, cluster.sign
    fake.apply { ops = { state.put(kv.key, cluster), state.put(nkv.key, n) } }
    fake.now = fake.now + 2 * DAY
    pass(61)
    assert.equal(1, #certs.list())
    assert.is_table(state.cluster().rotation)
    pass(HOUR)
    for _ = 1, 3 do rotation.turn() end
    assert.is_nil(state.cluster().rotation)
  end))
end)

