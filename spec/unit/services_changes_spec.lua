-- The resources of services in the state: what is taken, and that whatever is made of it later still fits.
local fake = require "spec.unit.cluster_fake"
local sandbox = require "spec.unit.policy_fake"
local changes = require "symphony.services.changes"
local commands = require "symphony.services.commands"
local json = require "symphony.json"
local loop = require "symphony.services.loop"
local registry = require "symphony.services.registry"
local resources = require "symphony.services.resources"
local state = require "symphony.cluster.state"

local WHO = { kind = "control", name = "m" }
local KIB = 1024

local function service(schema, more)
  local s = { kind = "jar", resources = { jar = { schema = schema } }, reconcile = print, actual = print }
  for k, v in pairs(more or {}) do s[k] = v end
  assert(registry.check(s))
  registry.set_own { { module = s, file = "jar.lua" } }
end

local TEXT = { text = { type = "string", max = 100 * KIB } }

local function text(kib) return { text = ("x"):rep(kib * KIB) } end

local function worker(id)
  local n = { node_id = id, name = id, role = "worker", services = json.array { "jar" }, labels = {} }
  fake.apply { ops = { state.put("/node/" .. id, n),
    state.put("/status/node/" .. id, { status = "ready", since = 1 }) } }
end

local function scenario(fn)
  return fake.task(function()
    fake.reset()
    sandbox.reset()
    fake.make()
    loop.stop()
    local ok, err = pcall(fn)
    registry.set_own {}
    if not ok then error(err, 0) end
  end)
end

local function refused(code, fn, ...)
  local ok, err = pcall(fn, ...)
  assert.is_false(ok)
  assert.equal(code, err.code, err.message)
end

local function create(body) return changes.serve_create("jar", body, WHO) end
local function update(id, body) return changes.serve_update("jar", id, body, WHO) end

describe("a resource", function()
  it("takes no more than 128 KiB with the spec of before, and can be updated once it is made", scenario(function()
    service(TEXT, { rollout = "rolling" })
    worker "a"
    refused("too_big", create, { id = "x", spec = text(70) })
    create { id = "x", spec = text(40) }
    refused("too_big", update, "x", { spec = text(70) })
    update("x", { spec = text(60) })
    -- Neither the one that is too large beside the old one.
    refused("too_big", update, "x", { spec = text(90) })
    assert.is_true(#state.text("/res/jar/x") <= 128 * KIB)
    assert.equal(2, state.get("/res/jar/x").generation)
    -- Where nothing is kept of before there is place for one.
    service(TEXT)
    create { id = "y", spec = text(100) }
    update("y", { spec = { text = ("y"):rep(100 * KIB) } })
  end))

  it("takes no more on all its nodes than a change of the state can hold", scenario(function()
    service(TEXT)
    for i = 1, 32 do worker("node-" .. i) end
    refused("too_big", create, { id = "x", replicas = 32, spec = text(30) })
    create { id = "x", replicas = 6, spec = text(90) }
    refused("too_big", update, "x", { replicas = 8 })
    refused("too_big", update, "x", { spec = text(100), replicas = 7 })
    update("x", { replicas = 2, spec = text(100) })
  end))

  it("keeps its spec until somebody changes that, whatever the schema has become", scenario(function()
    service { size = { type = "integer" }, old = { type = "string" } }
    worker "a"
    create { id = "x", spec = { size = 3, old = "word" } }
    service { size = { type = "integer", max = 2 }, new = { type = "string", default = "word" } }
    local row = update("x", { replicas = 2 })
    assert.same({ 1, { size = 3, old = "word" }, { "replicas" } }, { row.generation, row.spec, row.changes })
    refused("invalid", update, "x", { spec = { new = "other" } })
    row = update("x", { spec = { size = 1, old = json.null } })
    assert.same({ 2, { size = 1, new = "word" } }, { row.generation, row.spec })
    changes.serve_remove("jar", "x", WHO)
  end))

  it("has its defaults again where something is null, and stays one that is placed", scenario(function()
    service(TEXT, { move = "start-first" })
    worker "a"
    create { id = "x", replicas = json.null, spec = text(1) }
    local doc = state.get "/res/jar/x"
    assert.same({ 1, {}, "start-first", { "a" } }, { doc.replicas, doc.constraints, doc.move, doc.nodes })
    update("x", { replicas = 2, move = "stop-first", move_after = 5, constraints = { zone = "a" } })
    update("x", { replicas = json.null, move = json.null, move_after = json.null, constraints = json.null })
    doc = state.get "/res/jar/x"
    assert.same({ 1, {}, "start-first" }, { doc.replicas, doc.constraints, doc.move })
    assert.is_nil(doc.move_after)
  end))

  it("that is no node's work is placed nowhere, whatever is said", scenario(function()
    service(TEXT, { placed = false })
    worker "a"
    for name, v in pairs { replicas = 3, constraints = { zone = "a" }, move_after = 5, rollout_s = 5 } do
      refused("invalid", create, { id = "x", spec = text(1), [name] = v })
    end
    create { id = "x", spec = text(1), replicas = json.null }
    refused("invalid", update, "x", { replicas = 1 })
    assert.same({}, state.get("/res/jar/x").nodes)
    assert.is_nil(state.get("/res/jar/x").replicas)
  end))
end)

describe("who waits for a resource", function()
  -- What wait() says, when the rows are like this, one after the other.
  local function wait(rows)
    local get, at = resources.get, 0
    resources.get = function()
      at = at + 1
      return assert(rows[at], "it waits for more")
    end
    local row, err = commands.wait("jar", "x")
    resources.get = get
    return row and at, err
  end

  local function row(generation, word, rollout, of)
    return { kind = "jar", id = "x", service = "jar", generation = generation, replicas = 1, missing = 0,
      nodes = { { node_id = "a", state = word, generation = of or generation } }, rollout = { state = rollout } }
  end

  it("is told of what has failed, but not of what failed before it was mended", scenario(function()
    local at, err = wait { row(1, "starting"), row(1, "failed") }
    assert.same({ nil, "conflict" }, { at, err.code })
    assert.equal(3, wait { row(2, "failed", "rolling", 1), row(2, "starting", "rolling"), row(2, "running", "done") })
    assert.equal(1, wait { { kind = "jar", id = "x", generation = 1, nodes = {} } }) -- nobody's work
  end))
end)

describe("a service that is never content with what it keeps", function()
  it("has a resource changed as often as is good for the log, and keeps nothing else from it", scenario(function()
    local n = 0
    service({ text = { type = "string" } }, { rollout = "rolling", decide = function()
      n = n + 1
      return { n = n }
    end })
    worker "a"
    create { id = "x", spec = { text = "one" } }
    update("x", { spec = { text = "two" } })
    local before = fake.revision
    for _ = 1, 60 do loop.turn() end
    loop.stop()
    assert.equal(2, state.get("/assign/a/jar/x").generation) -- the rollout went on
    assert.is_true(fake.revision - before < 30, fake.revision - before)
    assert.is_true(state.get("/res/jar/x").data.n >= 20)
  end))
end)
