local fake = require "spec.unit.cluster_fake"
local sandbox = require "spec.unit.policy_fake"
local engine = require "symphony.policy.engine"
local match = require "symphony.policy.match"
local state = require "symphony.cluster.state"
local store = require "symphony.policy.store"

local REFUSE = [[return { summary = "No to all", hooks = { ["admit.change"] = function() return refuse("no") end } }]]

-- A policy whose only case passes or not; @mark makes its source another.
local function tested(ok, mark)
  return ([[return { hooks = { ["admit.change"] = function() return allow() end }, -- %s
    selftest = { { name = "is allowed", hook = "admit.change", input = { kind = "kv" },
      expect = %s } } }]]):format(mark or "", ok and "{ allow = true }" or "{ refuse = true }")
end

local cluster, fails, told = sandbox.cluster, sandbox.fails, sandbox.told

describe("policies in the state", function()
  it("are set, shown, listed in their order, and removed", cluster(function()
    local p = store.set("b", REFUSE, "me")
    assert.same({ "b", "No to all", 50, { "admit.change" }, true, 1, "me" },
      { p.name, p.summary, p.order, p.hooks, p.enabled, p.version, p.set_by })
    assert.is_nil(p.source)
    store.set("c", REFUSE:gsub("summary", "order = 3, summary"), "me")
    store.set("a", REFUSE, "me")
    local names = {}
    for i, row in ipairs(store.ls()) do names[i] = row.name end
    assert.same({ "c", "a", "b" }, names)
    assert.equal(REFUSE, store.show("b").source)
    assert.equal(3, #told "policy.set")
    assert.same({ "policy b version 1 is set by me", "b" }, { told("policy.set")[1].message,
      told("policy.set")[1].policy })
    store.rm("b", "you")
    fails("not_found", "no policy b", store.show, "b")
    assert.equal("policy b is removed by you", told("policy.removed")[1].message)
  end))

  it("are not set when they do not load, or fail their own test", cluster(function()
    fails("invalid", "does not load", store.set, "a", "return {", "me")
    fails("invalid", "no hooks", store.set, "a", "return { hooks = {} }", "me")
    fails("invalid", "there is no hook on.fire", store.set, "a", [[return { hooks = { ["on.fire"] = type } }]], "me")
    fails("invalid", "1 of 1 cases.*is allowed: wanted", store.set, "a", tested(false), "me")
    fails("invalid", "a policy's name", store.set, "A b", REFUSE, "me")
    fails("too_big", "65537 bytes", store.set, "a", REFUSE .. (" "):rep(65537 - #REFUSE), "me")
    fails("invalid", "UTF%-8", store.set, "a", REFUSE .. "-- \xff", "me")
    assert.same({}, store.ls())
    store.set("a", tested(true), "me")
    fails("invalid", "1 of 1 cases", store.set, "a", tested(false), "me")
    assert.equal(1, store.show("a").version)
    assert.equal(tested(true), store.show("a").source)
  end))

  it("keep twenty versions, to which one can go back", cluster(function()
    for i = 1, 30 do assert.equal(i, store.set("a", tested(true, i), "me").version) end
    local rows = store.history("a")
    assert.equal(21, #rows)
    assert.same({ 30, true, 29, nil, 10 }, { rows[1].version, rows[1].current, rows[2].version, rows[2].current,
      rows[21].version })
    assert.equal(31, store.rollback("a", 12, "me").version)
    assert.equal(tested(true, 12), store.show("a").source)
    assert.equal(32, store.rollback("a", nil, "me").version)
    assert.equal(tested(true, 30), store.show("a").source)
    fails("not_found", "no version 3", store.rollback, "a", 3, "me")
    fails("invalid", "present one", store.rollback, "a", 32, "me")
    fails("not_found", "no policy b", store.rollback, "b", nil, "me")
    assert.truthy(told("policy.set")[32].message:find("goes back to version 30, as version 32, by me", 1, true))
    -- One that is removed leaves its versions, and is not taken for a new one.
    store.rm("a", "me")
    assert.equal(32, store.history("a")[1].version)
    assert.equal(33, store.set("a", tested(true), "me").version)
    assert.equal(tested(true, 30), store.show("a", 32).source)
    assert.equal(tested(true), store.show("a", 33).source)
    fails("not_found", "no version 34", store.show, "a", 34)
    -- Nor is its source lost: it can be shown, and had again.
    store.rm("a", "me")
    assert.equal(tested(true), store.show("a", 33).source)
    fails("not_found", "no policy a", store.show, "a")
    local p = store.rollback("a", nil, "me")
    assert.same({ 34, 33, true, tested(true) }, { p.version, p.back_to, p.enabled, store.show("a").source })
    store.rm("a", "me")
    assert.equal(32, store.rollback("a", 32, "me").back_to)
    assert.equal(tested(true, 30), store.show("a").source)
  end))

  it("do not go back to what does not load any more, nor are enabled then", cluster(function()
    store.set("a", tested(true, 1), "me")
    store.set("a", tested(true, 2), "me")
    for version = 1, 2 do
      local key = version == 1 and "/policy-history/a/0000000001" or "/policy/a"
      local record = state.get(key)
      record.source = "return {"
      fake.apply { ops = { state.put(key, record) } }
    end
    fails("invalid", "^version 1 of policy a: the policy does not load: ", store.rollback, "a", 1, "me")
    store.disable("a", "me")
    fails("invalid", "^policy a: the policy does not load: ", store.enable, "a", "me")
    assert.same({ 2, false }, { store.show("a").version, store.show("a").enabled })
    fails("invalid", "^the policy is empty$", store.set, "b", "", "me")
  end))

  it("are unchanged by what they are already", cluster(function()
    store.set("a", tested(true), "me")
    local before = fake.revision
    assert.is_true(store.set("a", tested(true), "you").unchanged)
    assert.is_true(store.enable("a", "you").unchanged)
    assert.equal(before, fake.revision)
  end))

  it("are disabled and enabled; setting enables too", cluster(function()
    store.set("a", REFUSE, "me")
    local p = store.disable("a", "you", "too strict")
    assert.same({ false, "too strict", 1 }, { p.enabled, p.reason, p.version })
    assert.equal("policy a is disabled by you: too strict", told("policy.disabled")[1].message)
    assert.is_false(engine.admission():decides_kv())
    p = store.enable("a", "me")
    assert.same({ true, nil }, { p.enabled, p.reason })
    assert.is_true(engine.admission():decides_kv())
    store.disable("a", "you")
    assert.is_true(store.set("a", REFUSE, "me").enabled)
    -- Going back does not.
    store.set("a", tested(true), "me")
    store.disable("a", "you")
    assert.is_false(store.rollback("a", nil, "me").enabled)
  end))

  it("are at most 64", cluster(function()
    for i = 1, 64 do store.set("p" .. i, REFUSE, "me") end
    fails("too_big", "64 policies already", store.set, "one-more", REFUSE, "me")
    store.set("p7", tested(true), "me")
  end))
end)

describe("what policies match", function()
  -- The matcher is in C (spec/c/sandbox_rules.c says how long it takes at most): here it is called once for each glob.
  it("takes one look at each glob, and of those as many as there may be", function()
    local globs = {}
    for i = 1, 16 do globs[i] = ("*a"):rep(31) .. "*b" end
    local about = match.check_about { hooks = { "admit.change" }, match = { ["admit.change"] = { keys = globs } } }
    local rules, looks = require "sym.rules", 0
    local real = rules.glob
    rules.glob = function()
      looks = looks + 1
      return false
    end
    assert.is_false(match.concerns(about, "admit.change", { kind = "kv", key = ("a"):rep(1024) }))
    rules.glob = real
    assert.equal(16, looks)
    for _, bad in ipairs { table.pack(table.unpack(globs, 1, 16)), { ("a"):rep(65) } } do
      if #bad == 16 then bad[17] = "a" end
      assert.is_false(pcall(match.check_about, { hooks = { "admit.change" },
        match = { ["admit.change"] = { keys = bad } } }))
    end
  end)

  it("is by kind, key, action, role and name", function()
    local about = match.check_about { hooks = { "admit.change", "admit.join" }, match = {
      ["admit.change"] = { kinds = { "kv", "node" }, keys = { "a/*", "b" }, actions = { "put" } },
      ["admit.join"] = { roles = { "worker" }, names = { "w*" } } } }
    local function concerns(hook, input) return match.concerns(about, hook, input) end
    assert.is_true(concerns("admit.change", { kind = "kv", key = "a/x", action = "put" }))
    assert.is_true(concerns("admit.change", { kind = "node", key = "b", action = "put" }))
    assert.is_false(concerns("admit.change", { kind = "kv", key = "b", action = "delete" }))
    assert.is_false(concerns("admit.change", { kind = "block", key = "b", action = "put" }))
    assert.is_false(concerns("admit.change", { kind = "kv", key = "c", action = "put" }))
    assert.is_true(concerns("admit.join", { role = "worker", name = "w1" }))
    assert.is_false(concerns("admit.join", { role = "manager", name = "w1" }))
    assert.is_false(concerns("node.down", { name = "w1" }))
    assert.is_true(match.concerns_kv(about))
    about.match["admit.change"].kinds = { "node" }
    assert.is_false(match.concerns_kv(about))
  end)

  it("is checked", function()
    for _, about in ipairs { {}, { hooks = { "a" } }, { hooks = { "every.0s" } }, { hooks = { "every.never" } },
      { hooks = { "place." } }, { hooks = { "place.Foo" } }, { hooks = { 1 } }, { hooks = { "node.up" }, order = 101 },
      { hooks = { "node.up" }, order = 1.5 }, { hooks = { "node.up" }, summary = 1 },
      { hooks = { "node.up" }, match = { ["node.down"] = {} } },
      { hooks = { "node.up" }, match = { ["node.up"] = { keys = 1 } } },
      { hooks = { "node.up" }, match = { ["node.up"] = { keys = { 1 } } } },
      { hooks = { "node.up" }, match = { ["node.up"] = { colour = {} } } } } do
      local ok, err = pcall(match.check_about, about)
      assert.is_false(ok)
      assert.equal("invalid", err.code)
    end
    assert.equal(30, match.period "every.30s")
    assert.equal(3600, match.period "every.1h")
    assert.is_true(match.is_hook "place.block" and match.is_hook "every.1s")
  end)
end)

describe("the state's way to the sandbox", function()
  it("keeps what is enabled there, and says what it stands for", cluster(function()
    store.set("a", REFUSE, "me")
    store.set("b", tested(true), "me")
    engine.list()
    assert.truthy(sandbox.loaded.a and sandbox.loaded.b)
    local rows = state.list_raw "/policy/"
    assert.same({ math.max(rows[1].mod_revision, rows[2].mod_revision), 2 }, sandbox.marks)
    local b = sandbox.loaded.b
    store.disable("a", "me")
    engine.list()
    assert.is_nil(sandbox.loaded.a)
    assert.equal(b, sandbox.loaded.b) -- not loaded anew
    store.rm("b", "me")
    engine.list()
    assert.same({}, sandbox.loaded)
  end))

  it("says to the fast way of keys whether they are decided on", cluster(function()
    engine.list()
    assert.equal(0, fake.kv_policies)
    store.set("nodes", [[return { match = { ["admit.change"] = { kinds = { "node" } } },
      hooks = { ["admit.change"] = function() end } }]], "me")
    engine.list()
    assert.equal(state.list_raw("/policy/")[1].mod_revision, fake.kv_policies)
    store.set("all", REFUSE, "me")
    engine.list()
    assert.equal("lua", fake.kv_policies)
    store.rm("all", "me")
    engine.list()
    assert.equal(state.list_raw("/policy/")[1].mod_revision, fake.kv_policies)
  end))

  it("goes by nothing of before when it could not be looked at", cluster(function()
    store.set("p", REFUSE, "me")
    assert.equal(1, #engine.list())
    fake.apply { ops = { state.delete "/policy/p" } }
    engine.changed()
    local sym_store = package.loaded["sym.store"]
    local list = sym_store.list
    sym_store.list = function() return nil, { code = "io", message = "the disk is away" } end
    local ok = pcall(engine.list)
    sym_store.list = list
    assert.is_false(ok)
    assert.equal(0, #engine.list())
  end))

  it("follows what others set, and begins anew when its history is gone", cluster(function()
    local record = { name = "a", enabled = true, source = REFUSE, sha256 = "x", version = 1,
      about = { hooks = { "admit.change" }, order = 50, summary = "", match = {} } }
    engine.start()
    local async = require "symphony.async"
    async.sleep(1)
    fake.apply { ops = { state.put("/policy/a", record) } }
    async.sleep(1)
    assert.truthy(sandbox.loaded.a)
    fake.compact()
    fake.apply { ops = { state.delete("/policy/a") } }
    async.sleep(20)
    assert.is_nil(sandbox.loaded.a)
  end))
end)
