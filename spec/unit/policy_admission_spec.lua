local fake = require "spec.unit.cluster_fake"
local sandbox = require "spec.unit.policy_fake"
local admit = require "symphony.cluster.admit"
local async = require "symphony.async"
local crypto = require "sym.crypto"
local engine = require "symphony.policy.engine"
local errors = require "symphony.errors"
local events = require "symphony.cluster.events"
local json = require "symphony.json"
local nodes = require "symphony.cluster.nodes"
local router = require "symphony.api.router"
local state = require "symphony.cluster.state"
local store = require "symphony.policy.store"
local writes = require "symphony.policy.writes"

local ME = { kind = "control", name = "m" }

local fails, told, value = sandbox.fails, sandbox.told, sandbox.value

local function policy(body, more)
  return sandbox.source("admit.change", "local change = input " .. body, more)
end

local QUOTA = policy [[if glob("team/*", change.key) and change.old == nil and count("/kv/team/") >= 1 then
  return refuse("one is enough") end]]

local function cluster(fn)
  return sandbox.cluster(function()
    router.reset()
    require("symphony.api.routes_txn").routes(router)
    fn()
  end)
end

local function put(key, new, who)
  return writes.submit({ compare = {}, ops = { { put = "/kv/" .. key, value = new } } }, who or ME)
end

local function ask(method, path, fields)
  local req = fake.ask(method, path, fields)
  return req.status, req:json()
end

describe("changes of keys", function()
  it("go straight on when no policy concerns them, and say so", cluster(function()
    assert.equal("applied", put("a", "1").status)
    store.set("nodes", policy([[return refuse("no")]],
      [[match = { ["admit.change"] = { kinds = { "node" } } },]]), "me")
    local seen
    fake.before_submit = function(txn) seen = txn.compare end
    assert.equal("applied", put("a", "2").status)
    assert.equal(0, #sandbox.calls)
    assert.same({ { prefix = "/policy/", revision = state.list_raw("/policy/")[1].mod_revision } }, seen)
  end))

  it("are refused by name, and told", cluster(function()
    store.set("quota", QUOTA, "me")
    assert.equal("applied", put("team/a", "1").status)
    local result, err = put("team/b", "1")
    assert.is_nil(result)
    assert.same({ "denied", "policy quota refuses: one is enough", "quota" }, { err.code, err.message, err.policy })
    assert.equal("applied", put("team/a", "2").status)
    assert.is_nil(value "team/b")
    local list = told "policy.refused"
    assert.same({ 1, "quota" }, { #list, list[1].policy })
    assert.truthy(list[1].message:find("a change of key team/b is refused: policy quota", 1, true))
    for _ = 1, 20 do put("team/b", "1") end
    assert.is_true(#told "policy.refused" <= 5)
  end))

  it("are bound to what was seen: two at once cannot both be the last that fits", cluster(function()
    store.set("quota", QUOTA, "me")
    -- All are decided before any is written.
    local waiting, results = {}, {}
    local submit = fake.apply
    local raft = package.loaded["sym.raft"]
    local real = raft.submit
    local hold = true
    raft.submit = function(txn, ms, cb)
      if hold then waiting[#waiting + 1] = { txn, ms, cb } else real(txn, ms, cb) end
    end
    local tasks = {}
    for i = 1, 20 do tasks[i] = async.spawn(function() results[i] = { put("team/k" .. i, "1") } end) end
    async.sleep(5)
    assert.equal(20, #waiting)
    hold = false
    for _, w in ipairs(waiting) do real(table.unpack(w)) end
    for _, t in ipairs(tasks) do t:wait() end
    raft.submit = real
    assert.equal(submit, fake.apply)
    local passed = 0
    for _, r in ipairs(results) do
      passed = passed + (r[1] and 1 or 0)
      if not r[1] then assert.equal("denied", r[2].code, r[2].message) end
    end
    assert.equal(1, passed)
    assert.equal(1, #state.list_raw "/kv/team/")
  end))

  it("are decided again three times, and then it is a conflict", cluster(function()
    store.set("quota", policy [[return count("/kv/other/") < 1000 and allow() or refuse("full")]], "me")
    local n = 0
    sandbox.after_call = function()
      n = n + 1
      fake.apply { ops = { state.put("/kv/other/" .. n, "x") } }
    end
    local result, err = put("a", "1")
    assert.is_nil(result)
    assert.same({ "conflict", 4 }, { err.code, n })
    n = 0
    sandbox.after_call = function()
      n = n + 1
      if n <= 3 then fake.apply { ops = { state.put("/kv/other/" .. n, "y") } } end
    end
    assert.equal("applied", put("a", "1").status)
    assert.equal(4, n)
  end))

  it("are decided again when the policies change meanwhile, by the new ones", cluster(function()
    store.set("first", policy [[return allow()]], "me")
    local record = json.decode(fake.kvs["/policy/first"].value)
    sandbox.after_call = function()
      sandbox.after_call = nil
      record.source, record.sha256 = policy [[return refuse("not any more")]], "other"
      fake.apply { ops = { state.put("/policy/first", record) } }
    end
    local _, err = put("a", "1")
    assert.equal("policy first refuses: not any more", err.message)
    -- Also when nobody decided on keys before.
    store.rm("first", "me")
    engine.list()
    record.name = "second"
    fake.before_submit = function()
      fake.before_submit = nil
      fake.apply { ops = { state.put("/policy/second", record) } }
    end
    _, err = put("a", "1")
    assert.equal("policy second refuses: not any more", err.message)
    assert.is_nil(value "a")
  end))

  it("do not get past a policy of which is heard between the look at the policies and the change", cluster(function()
    local raft = require "sym.raft"
    local read = raft.read
    finally(function() raft.read = read end)
    local txn = { id = ("x"):rep(16), since = 0, compare = {}, ops = { { put = "/kv/a", value = "1" } } }
    raft.read = function(...) -- of what was done under the id before
      raft.read = read
      local args = table.pack(...)
      async.spawn(function()
        store.set("closed", policy [[return refuse("closed")]], "me")
        engine.changed()
        assert.is_true(engine.admission():decides_kv())
        read(table.unpack(args, 1, args.n))
      end)
    end
    local result, err = writes.submit(txn, ME)
    assert.same({ nil, "denied" }, { result, err and err.code })
    assert.is_nil(value("a"))
  end))

  it("are amended one after the other", cluster(function()
    store.set("b", policy [[return amend { new = change.new .. "b" }]], "me")
    store.set("a", policy([[return amend { new = change.new .. "a" }]], "order = 10,"), "me")
    local result = put("k", "1")
    assert.equal("1ab", value "k")
    assert.same({ "a", "b" }, result.policies)
    store.set("b", policy [[return amend { new = table.concat({ change.new, change.new }) }]], "me")
    local _, err = put("k", ("x"):rep(600000))
    assert.equal("too_big", err.code)
  end))

  it("show the policy what was and who asks", cluster(function()
    store.set("p", policy [[return refuse(change.action .. " " .. change.key .. " " .. tostring(change.old) .. " "
      .. tostring(change.new) .. " " .. tostring(change.old_revision) .. " " .. change.who.kind .. " "
      .. tostring(change.who.name) .. " " .. change.kind)]], "me")
    assert.equal("policy p refuses: put a nil 1 nil control m kv", select(2, put("a", "1")).message)
    fake.apply { ops = { state.put("/kv/a", "0") } }
    local revision = fake.revision
    assert.equal(("policy p refuses: put a 0 1 %d certificate op kv"):format(revision),
      select(2, put("a", "1", { kind = "certificate", name = "op", role = "operator" })).message)
    assert.equal(("policy p refuses: delete a 0 nil %d control m kv"):format(revision),
      select(2, writes.submit({ compare = {}, ops = { { delete = "/kv/a" } } }, ME)).message)
    -- Bytes that are no text are text, and base64 beside it.
    store.set("p", policy [[return refuse(change.new .. " " .. change.new_base64)]], "me")
    assert.equal("policy p refuses: a\u{FFFD} Yf8=", select(2, put("a", "a\xff")).message)
  end))

  it("of which a policy fails are refused; of ten in a row it is disabled", cluster(function()
    store.set("p", policy [[if change.new == "bad" then error("oops") end]], "me")
    local function bad() return select(2, put("a", "bad")) end
    for _ = 1, 9 do assert.equal("policy_failed", bad().code) end
    assert.same({ p = 9 }, engine.failures())
    assert.equal("applied", put("a", "good").status)
    for _ = 1, 9 do
      local err = bad()
      assert.same({ "policy_failed", "p" }, { err.code, err.policy })
      assert.truthy(err.hint:find("symphony policy disable p", 1, true))
    end
    assert.is_true(store.show("p").enabled)
    bad()
    async.sleep(20)
    local p = store.show "p"
    assert.is_false(p.enabled)
    assert.truthy(p.reason:find("failed 10 times in a row, at last: .*oops"))
    local list = told "policy.disabled"
    assert.same({ 1, "p", p.reason }, { #list, list[1].policy, list[1].reason })
    assert.equal("applied", put("a", "bad").status)
    -- Enabled again it has ten more.
    store.enable("p", "me")
    for _ = 1, 9 do bad() end
    assert.is_true(store.show("p").enabled)
  end))

  it("that are only tried count as nothing, however often a policy fails", cluster(function()
    local source = policy [[error("oops")]]
    store.set("p", source, "me")
    local txn = { compare = {}, ops = { { put = "/kv/a", value = "x" } } }
    local input = { kind = "kv", key = "a", action = "put", new = "x" }
    local node_id = state.nodes()[1].value.node_id
    local function try()
      assert.equal("policy_failed", writes.plan(txn, ME).code)
      assert.equal("policy_failed", engine.explain("admit.change", input).code)
      assert.equal("policy_failed", nodes.serve_update(node_id, { labels = { a = "b" } }, { plan = true }).code)
      assert.is_false(engine.test(source, { { hook = "admit.change", input = input, expect = {} } }).cases[1].ok)
    end
    local said = engine.figures().said.failed
    for _ = 1, 12 do try() end
    sandbox.call_error = { code = "policy_timeout", message = "it did not end within 100 ms", policy = "p" }
    for _ = 1, 12 do assert.equal("policy_failed", writes.plan(txn, ME).code) end
    sandbox.call_error = nil
    async.sleep(20)
    assert.same({ {}, said, true }, { engine.failures(), engine.figures().said.failed, store.show("p").enabled })
    -- Nor do they make up for what has failed.
    put("a", "x")
    try()
    assert.same({ p = 1 }, engine.failures())
    assert.same({}, told "policy.disabled")
  end))

  it("of which a policy fails without Lua count as well, and those that it does not", cluster(function()
    store.set("p", policy [[if change.new == "bad" then error("oops") end]], "me")
    engine.list()
    local n, node = 0, require "sym.node"
    local _ <close> = setmetatable({ node.kv_heard }, { __close = function(was) node.kv_heard = was[1] end })
    node.kv_heard = function() return n end
    for _ = 1, 5 do engine.kv_failed("p", "it was not done", "a") end
    assert.same({ p = 5 }, engine.failures())
    async.sleep(20)
    assert.truthy(told("policy.failed")[1].message:find("a change of key a is refused: policy p failed", 1, true))
    n = 1 -- it has said something, of which this heard nothing
    engine.kv_failed("p", "it was not done", "a")
    assert.same({ p = 1 }, engine.failures())
    for _ = 1, 9 do put("a", "bad") end
    async.sleep(20)
    assert.is_false(store.show("p").enabled)
  end))

  it("are refused when the sandbox answers nothing, or does not load a policy", cluster(function()
    store.set("p", policy [[return allow()]], "me")
    engine.list()
    sandbox.call_error = { code = "policy_timeout", message = "it did not end within 100 ms", policy = "p" }
    local _, err = put("a", "1")
    assert.same({ "policy_failed", "p" }, { err.code, err.policy })
    sandbox.call_error = nil
    assert.same({ p = 1 }, engine.failures())
    sandbox.call_error = { code = "busy", message = "too much waits" } -- it is not the policy's fault
    _, err = put("a", "1")
    assert.equal("policy_failed", err.code)
    assert.same({ p = 1 }, engine.failures())
    sandbox.call_error = nil
    sandbox.load_error = { code = "busy", message = "too much waits" }
    store.set("q", policy [[return allow()]], "me")
    _, err = put("a", "1")
    assert.same({ "policy_failed", "q" }, { err.code, err.policy })
    assert.is_nil(value "a")
    sandbox.load_error = nil
    local sys = require "sym.sys"
    local real = sys.mono_ms
    sys.mono_ms = function() return real() + 5000 end
    assert.equal("applied", put("a", "1").status)
    sys.mono_ms = real
  end))

  it("are refused as too large when nobody can be asked about so much, which is no failure", cluster(function()
    store.set("p", policy [[return allow()]], "me")
    engine.list()
    local failed = engine.figures().said.failed
    sandbox.call_error = { code = "too_big", message = "the input of a hook has at most 4194304 bytes" }
    local _, err = put("a", "1")
    assert.same({ "too_big", sandbox.call_error.message, nil }, { err.code, err.message, err.policy })
    assert.same({ 413, "too_big" }, { (ask("PUT", "/v1/kv/a", { body = "1" })),
      select(2, ask("PUT", "/v1/kv/a", { body = "1" })).error.code })
    local txn = { compare = {}, ops = { { put = "/kv/a", value = "1" } } }
    assert.same({ false, "too_big" }, { writes.plan(txn, ME).allow,
      engine.explain("admit.change", { kind = "kv", key = "a", action = "put", new = "1", who = ME }).code })
    assert.is_nil(value "a")
    assert.same({}, engine.failures())
    assert.equal(failed, engine.figures().said.failed)
    sandbox.call_error = nil
    assert.equal("applied", put("a", "1").status)
  end))

  it("are refused while a policy has to be loaded again, which is no failure of it", cluster(function()
    store.set("a", policy [[return nil]], "me")
    store.set("p", policy [[return allow()]], "me")
    engine.list()
    sandbox.call_error = { code = "busy", policy = "p",
      message = "policy p failed: it does not load again, and is tried: it ran out of memory" }
    sandbox.broken = { { name = "p", why = "it ran out of memory", tries = 1, retry_ms = 900 } }
    for _ = 1, 20 do
      local _, err = put("a", "1")
      assert.same({ "policy_failed", "p" }, { err.code, err.policy })
      assert.truthy(err.message:find("policy p failed, so this is refused: it does not load again", 1, true))
    end
    assert.same({}, engine.failures())
    assert.equal(1, engine.figures().failing)
    assert.equal("it ran out of memory", store.show("p").broken)
    assert.same({ [1] = nil, [2] = "it ran out of memory" }, { store.ls()[1].broken, store.ls()[2].broken })
    sandbox.call_error, sandbox.broken = nil, {}
    assert.equal("applied", put("a", "1").status)
    assert.is_nil(store.show("p").broken)
  end))

  it("count one failure for each time that a policy does not load", cluster(function()
    store.set("p", policy [[return allow()]], "me")
    sandbox.load_error = { code = "policy_died", message = "policy p: it was ended by signal 9", policy = "p" }
    for _ = 1, 20 do
      local _, err = put("a", "1")
      assert.same({ "policy_failed", "p" }, { err.code, err.policy })
    end
    assert.same({ p = 1 }, engine.failures())
    assert.is_true(store.show("p").enabled)
    assert.equal("policy p: it was ended by signal 9", store.show("p").broken)
  end))

  it("leave no earlier version of a policy in the sandbox that does not take the new one", cluster(function()
    store.set("p", policy [[return allow()]], "me")
    put("a", "1")
    assert.is_table(sandbox.loaded.p)
    store.set("p", policy [[return nil]], "me")
    sandbox.load_error = { code = "policy_died", message = "policy p: it was ended by signal 9", policy = "p" }
    put("a", "2")
    assert.is_nil(sandbox.loaded.p)
  end))

  it("are refused whatever the sandbox answers that cannot be", cluster(function()
    store.set("p", policy [[return allow()]], "me")
    engine.list()
    local module = package.loaded["sym.policy"]
    local real = module.call
    local row = [[{"policy":"p","said":"allow","us":1,"instructions":1}]]
    for _, text in ipairs { "", "null", "[]", "{", '"x"', "{}", [[{"trace":1}]], [[{"trace":[1]}]],
      [[{"trace":[{"policy":"p","said":"maybe"}]}]], [[{"trace":[{"policy":"other","said":"allow"}]}]],
      ([[{"trace":[%s],"decision":1}]]):format(row), ([[{"trace":[%s],"decision":{"refuse":{}}}]]):format(row),
      ([[{"trace":[%s],"reads":1}]]):format(row), ([[{"trace":[%s],"reads":[{}]}]]):format(row),
      ([[{"trace":[%s],"reads":[{"key":"/secret/ca","revision":1}]}]]):format(row),
      ([[{"trace":[%s],"reads":[{"key":"/kv/a","revision":-1}]}]]):format(row),
      ([[{"trace":[%s],"reads":[{"prefix":"/kv/","revision":1}]}]]):format(row),
      ([[{"trace":[%s],"amended":1}]]):format(row), ([[{"trace":[%s],"amended":{"new":1}}]]):format(row) } do
      module.call = function(_, _, _, cb) cb(nil, text) end
      local result, err = put("a", "1")
      assert.is_nil(result, text)
      assert.equal("policy_failed", err.code, text)
    end
    assert.is_nil(value "a")
    module.call = function(_, _, _, cb) cb(nil, ([[{"trace":[%s]}]]):format(row)) end
    assert.equal("applied", put("a", "1").status)
    module.call = real
    assert.same({}, engine.failures()) -- nobody can say whose fault it was
  end))

  it("that come together are decided one by one, and not what needs another of them", cluster(function()
    store.set("quota", QUOTA, "me")
    local function both(...)
      local ops = {}
      for i, key in ipairs { ... } do ops[i] = { put = "/kv/" .. key, value = "x" } end
      return writes.submit({ compare = {}, ops = ops }, ME)
    end
    local _, err = both("team/a", "team/b")
    assert.equal("invalid", err.code)
    assert.truthy(err.message:find("cannot decide on them together", 1, true))
    assert.is_nil(value "team/a")
    store.set("quota", policy [[if change.key == "team/b" then return refuse("no b") end]], "me")
    assert.equal("denied", select(2, both("team/a", "team/b")).code)
    assert.is_nil(value "team/a")
    assert.equal("applied", both("team/a", "team/c").status)
    -- What stands before it in the same txn is what a key holds.
    store.set("quota", policy [[if change.key == "x" and change.new == "2" then return refuse(change.old) end]], "me")
    _, err = writes.submit({ compare = {}, ops = { { put = "/kv/x", value = "1" }, { put = "/kv/x", value = "2" } } },
      ME)
    assert.equal("policy quota refuses: 1", err.message)
  end))

  it("take as many compares as there are, and say so when there are more", cluster(function()
    store.set("p", policy [[for i = 1, 60 do get("/kv/n/" .. i) end]], "me")
    assert.equal("applied", put("a", "1").status)
    store.set("p", policy [[for i = 1, 60 do get("/kv/" .. change.key .. i) end]], "me")
    local ops = {}
    for i = 1, 4 do ops[i] = { put = "/kv/k" .. i .. "/", value = "x" } end
    local _, err = writes.submit({ compare = {}, ops = ops }, ME)
    assert.equal("too_big", err.code)
  end))

  it("of a leader that is none any more are not refused by what it does not know", cluster(function()
    store.set("quota", QUOTA, "me")
    assert.equal("applied", put("team/a", "1").status)
    local raft = package.loaded["sym.raft"]
    local real = raft.read
    raft.read = function(ms, cb) -- what others have done comes with the read
      raft.read = real
      fake.apply { ops = { state.delete "/kv/team/a" } }
      real(ms, cb)
    end
    assert.equal("applied", put("team/b", "1").status)
    -- But what others write meanwhile is no reason to begin again for ever, nor is a policy that fails.
    local n = 0
    sandbox.after_call = function()
      n = n + 1
      fake.apply { ops = { state.put("/kv/other/" .. n, "x") } }
    end
    assert.equal("denied", select(2, put("team/c", "1")).code)
    assert.is_true(n <= 2, n)
    store.set("quota", policy [[error("oops")]], "me")
    n = 0
    assert.equal("policy_failed", select(2, put("team/c", "1")).code)
    assert.equal(1, n)
  end))
end)

describe("a txn from wherever", function()
  it("that changes users' keys is decided on", cluster(function()
    local op = { put = "/kv/team/b", value = "x" }
    store.set("quota", QUOTA, "me")
    assert.equal("applied", state.submit({ ops = { { put = "/kv/team/a", value = "x" } } }).status)
    local _, err = state.submit { compare = {}, ops = { op } }
    assert.same({ "denied", "quota" }, { err.code, err.policy })
    _, err = state.submit { ops = { op, { put = "/other", value = "x" } } }
    assert.equal("denied", err.code)
    assert.same({ nil, nil }, { value "team/b", (state.text "/other") })
    -- A restore is as it was.
    assert.equal("applied", state.submit({ ops = { op }, decided = true }).status)
    store.rm("quota", "me")
    assert.equal("applied", state.submit({ ops = { op, { put = "/other", value = "x" } } }).status)
    -- Not what comes behind a policy of which this manager has not heard yet.
    engine.list()
    fake.before_submit = function()
      fake.before_submit = nil
      store.set("quota", QUOTA, "me")
    end
    local result = state.submit { ops = { { put = "/kv/team/c", value = "x" }, { put = "/other", value = "y" } } }
    assert.equal("conflict", result.status)
    fake.status.state, fake.status.leader = "follower", 9
    op.put = "/kv/team/z"
    _, err = state.submit { compare = { { key = "/other", value = "x" } }, ops = { op } }
    assert.equal("not_leader", err.code)
  end))
end)

describe("the routes of keys", function()
  it("answer as those in C do", cluster(function()
    store.set("p", policy [[return change.new == "bad" and refuse("bad") or allow()]], "me")
    local status, answer = ask("PUT", "/v1/kv/a/b", { body = "1" })
    assert.same({ 200, { revision = fake.revision } }, { status, answer })
    assert.equal("1", value "a/b")
    status, answer = ask("PUT", "/v1/kv/a/b", { body = "bad" })
    assert.same({ 403, "denied", "p" }, { status, answer.error.code, answer.error.policy })
    local at = state.list_raw("/kv/a/b")[1].mod_revision
    status, answer = ask("PUT", "/v1/kv/a/b", { body = "2", query = "mod_revision=" .. at - 1 })
    assert.same({ 409, "the key is not as the request expects it" }, { status, answer.error.message })
    assert.equal(200, (ask("PUT", "/v1/kv/a/b", { body = "2", query = "mod_revision=" .. at })))
    assert.equal(409, (ask("PUT", "/v1/kv/a/b", { body = "2", query = "mod_revision=0" })))
    assert.equal(400, (ask("PUT", "/v1/kv/a/b", { body = "2", query = "mod_revision=x" })))
    assert.equal(413, (ask("PUT", "/v1/kv/a", { body = ("x"):rep((1 << 20) + 1) })))
    assert.equal(200, (ask("PUT", "/v1/kv/a/b", { body = "3", query = "plan=true" }))) -- as in C there is no such thing
    assert.equal("3", value "a/b")
    assert.equal(200, (ask("DELETE", "/v1/kv/a/b")))
    assert.is_nil(value "a/b")
    assert.equal(200, (ask("DELETE", "/v1/kv/a/b")))
    assert.equal(200, (ask("PUT", "/v1/kv/new\nline", { body = "x" })))
    assert.equal("x", value "new\nline")
  end))

  it("do what is said twice once", cluster(function()
    store.set("quota", QUOTA, "me")
    local function again(key, body, target)
      return ask("PUT", "/v1/kv/" .. (target or "team/a"), { body = body, headers = { ["idempotency-key"] = key } })
    end
    local status, first = again("k1", "1")
    assert.equal(200, status)
    fake.apply { ops = { state.put("/kv/team/a", "later") } }
    local second
    status, second = again("k1", "1")
    assert.same({ 200, first.revision, true }, { status, second.revision, second.repeated })
    assert.equal("later", value "team/a")
    -- Another request by the same name is another; what was refused was not done.
    assert.equal(403, (again("k1", "1", "team/b")))
    fake.apply { ops = { state.delete "/kv/team/a" } }
    assert.equal(200, (again("k1", "1", "team/b")))
    -- What was done while nobody decided is known too.
    local id = crypto.sha256(table.concat({ "k2", "PUT", "/v1/kv/team/z", "", "1" }, "\0")):sub(1, 16)
    fake.results[id .. "/0"] = { status = "applied", revision = 7 }
    status, second = again("k2", "1", "team/z")
    assert.same({ 200, 7, true }, { status, second.revision, second.repeated })
    -- What was decided is found by the fast way; a conflict of it with the policies is none.
    id = crypto.sha256(table.concat({ "k1", "PUT", "/v1/kv/team/b", "", "1" }, "\0")):sub(1, 16)
    assert.equal("applied", fake.results[id .. "/0"].status)
    id = crypto.sha256(table.concat({ "k3", "PUT", "/v1/kv/elsewhere", "", "1" }, "\0")):sub(1, 16)
    fake.results[id .. "/0"] = { status = "conflict", failed = 1, revision = 7 }
    assert.equal(200, (again("k3", "1", "elsewhere")))
  end))

  it("show what would become of a txn", cluster(function()
    store.set("quota", QUOTA, "me")
    store.set("tidy", policy [[return amend { new = change.new:lower() }]], "me")
    local before = fake.revision
    local function plan(key, text)
      return select(2, ask("POST", "/v1/txn", { query = "plan=true",
        body = json.encode { ops = { { put = key, value = text } } } }))
    end
    local answer = plan("team/a", "ABC")
    assert.is_true(answer.allow)
    assert.same({ { put = "team/a", value = "abc" } }, answer.ops)
    assert.same({ "quota", "nothing", "tidy", "amend" }, { answer.policies[1].policy, answer.policies[1].said,
      answer.policies[2].policy, answer.policies[2].said })
    assert.equal(before, fake.revision)
    put("team/x", "1")
    answer = plan("team/a", "ABC")
    assert.same({ false, "denied", "quota" }, { answer.allow, answer.code, answer.policy })
    async.sleep(5)
    assert.same({}, events.list { kind = "policy.refused" })
  end))

  it("are tried where another manager leads, and left to it when that does not go through", cluster(function()
    store.set("p", policy [[if not glob("fine*", change.key) then return refuse("no") end return amend { new = "A" }]],
      "me")
    engine.list()
    fake.status.state = "follower"
    assert.same({ "applied", { "p" } }, { put("fine", "a").status, put("fine", "a").policies })
    assert.equal("A", value "fine")
    assert.equal(writes.FORWARD, put("a", "1"))
    assert.same({}, told "policy.refused") -- the leader says so, if it does
    sandbox.after_call = function()
      sandbox.after_call = nil
      fake.apply { ops = { state.put("/kv/fine", "b") } }
    end
    assert.equal(writes.FORWARD, put("fine", "a"))
    assert.equal("b", value "fine")
    sandbox.call_error = { code = "policy_timeout", message = "late", policy = "p" }
    assert.equal("policy_failed", select(2, put("fine", "a")).code)
    sandbox.call_error = nil
    local result = writes.submit({ compare = { { key = "/kv/fine", value = "x" } },
      ops = { { put = "/kv/fine", value = "1" } } }, ME)
    assert.same({ "conflict", 1 }, { result.status, result.failed })
    fake.submit_error = { code = "outcome_unknown", message = "no answer" } -- it may have been done
    assert.equal("outcome_unknown", select(2, put("fine", "a")).code)
    fake.submit_error = nil
    fake.status.leader = 9
    fake.apply { ops = { state.put("/raft/9", "n9"), state.put("/node/n9", { remote_address = "10.9.9.9:1",
      raft_node_id = 9, node_id = "n9" }) } }
    fake.answer = function(opts)
      return nil, { status = 200, body = json.encode { revision = 77, sent = opts.headers["symphony-who"],
        path = opts.path } }
    end
    local status, answer = ask("PUT", "/v1/kv/a%b", { body = "1", query = "mod_revision=3" })
    assert.same({ 200, 77, "/v1/kv/a%25b?mod_revision=3" }, { status, answer.revision, answer.path })
    assert.equal("control", json.decode(answer.sent).kind)
    local done = writes.change({ compare = { { key = "/kv/a", mod_revision = 3 } },
      ops = { { delete = "/kv/a" } } }, ME)
    assert.equal(77, done.revision)
    local sent = json.decode(fake.requests[#fake.requests].body)
    assert.same({ compare = { { key = "a", mod_revision = 3 } }, ops = { { delete = "a" } } }, sent)
  end))
end)

describe("changes of nodes", function()
  local ID = "0abcdefghijklmnopqrstuvabc"

  local function with_node(fn)
    return cluster(function()
      fake.apply { ops = { state.put("/node/" .. ID, { node_id = ID, name = "w1", role = "worker",
        fingerprint = "f", labels = { zone = "a" }, availability = "active" }), state.put("/name/w1", ID),
        state.put("/status/node/" .. ID, { status = "down" }) } }
      fn()
    end)
  end

  it("are refused, amended and told of", with_node(function()
    store.set("p", policy [[
      if change.kind ~= "node" then return end
      if change.action == "delete" then return refuse("it stays") end
      if change.new.name == "bad" then return refuse("not " .. change.old.name .. " by " .. change.who.role) end
      if change.new.availability == "drain" then
        change.new.labels.drained = "yes"
        return amend { labels = change.new.labels, name = "w2", fingerprint = "other" }
      end]], "me")
    local who = { who = { kind = "certificate", role = "operator", name = "op" } }
    local err = fails("denied", "policy p refuses: not w1 by operator", nodes.serve_update, "w1", { name = "bad" }, who)
    assert.equal("p", err.policy)
    fails("denied", "it stays", nodes.serve_remove, "w1", {})
    local row = nodes.serve_update("w1", { availability = "drain" }, who)
    assert.same({ "w2", "drain", { zone = "a", drained = "yes" }, "f" }, { row.name, row.availability, row.labels,
      row.fingerprint })
    local event = events.list { kind = "node.updated" }[1]
    assert.truthy(event.message:find("availability drain, was active; w1 is called w2 now; label drained=yes "
      .. "(amended by policy p)", 1, true), event.message)
    assert.same({ "p" }, event.policies)
    assert.equal(ID, state.text "/name/w2")
    local list = told "policy.refused"
    assert.truthy(list[1].message:find("a change of node w1 is refused", 1, true))
    assert.truthy(list[2].message:find("the removal of node w1 is refused", 1, true))
  end))

  it("have a plan", with_node(function()
    store.set("p", policy [[if change.new.labels.a then return refuse("no a") end]], "me")
    local before = fake.revision
    local plan = nodes.serve_update("w1", { labels = { b = "1" } }, { plan = true })
    assert.same({ true, { "label b=1" }, "p", "nothing" }, { plan.allow, plan.changes, plan.policies[1].policy,
      plan.policies[1].said })
    plan = nodes.serve_update("w1", { labels = { a = "1" } }, { plan = true })
    assert.same({ false, "denied", "p" }, { plan.allow, plan.code, plan.policy })
    plan = nodes.serve_update("w1", { labels = { zone = "a" } }, { plan = true })
    assert.same({}, plan.changes)
    assert.equal(before, fake.revision)
  end))

  it("are bound to what was seen", with_node(function()
    store.set("p", policy [[if get("/kv/frozen") then return refuse("frozen") end]], "me")
    sandbox.after_call = function()
      sandbox.after_call = nil
      fake.apply { ops = { state.put("/kv/frozen", "yes") } }
    end
    fails("denied", "frozen", nodes.serve_update, "w1", { labels = { b = "1" } })
  end))
end)

describe("joins", function()
  local made

  local function joining(source, fn)
    return cluster(function()
      made = fake.make and fake.kvs and true
      store.set("p", ([[return { hooks = { ["admit.join"] = function(request) %s end } }]]):format(source), "me")
      fn()
    end)
  end

  local function request(key, fields)
    local at = "10.9.1.1"
    local body = { role = "worker", csr = fake.csr(key), name = "host", addresses = { remote = at .. ":2",
      gossip = at .. ":3" }, version = "1.0" }
    for k, v in pairs(fields or {}) do body[k] = v end
    return assert(admit.check(body))
  end

  it("are let in by a policy without a token", joining([[
    if request.address == "192.0.2.1" and not request.token then return approve() end]], function()
    assert.truthy(made)
    local status, answer = admit.serve(request "k1", "192.0.2.9")
    assert.same({ 202, nil }, { status, answer.node_id })
    status, answer = admit.serve(request "k2", "192.0.2.1")
    assert.equal(200, status)
    local event = events.list { kind = "node.joined", node = answer.node_id }[1]
    assert.truthy(event.message:find("joins from 192.0.2.1, approved by a policy", 1, true))
    assert.same({ "p" }, event.policies)
    -- Who waits is let in when a policy comes that does so.
    store.set("p", [[return { hooks = { ["admit.join"] = function() return approve() end } }]], "me")
    status = admit.serve(request "k1", "192.0.2.9")
    assert.equal(200, status)
    assert.same({}, state.list_raw "/pending/")
  end))

  it("are refused and amended, with a token too", joining([[
    if request.name == "bad" then return refuse(request.role .. " " .. tostring(request.token) .. " "
      .. request.version .. " " .. request.addresses.remote .. " " .. request.labels.t) end
    request.labels.seen = "yes"
    return amend { name = "worker-" .. request.name, labels = request.labels, role = "manager" }]], function()
    local tokens = require "symphony.cluster.tokens"
    local function uses()
      for _, row in ipairs(tokens.list()) do
        if row.uses then return row.uses end
      end
    end
    local token = assert(tokens.create { role = "worker", labels = { t = "1" }, uses = 2 }).token
    local status, err = admit.serve(request("k1", { token = token, name = "bad" }), "192.0.2.1")
    assert.is_nil(status)
    assert.same({ "denied", "policy p refuses: worker true 1.0 10.9.1.1:2 1", "p" }, { err.code, err.message,
      err.policy })
    assert.equal(2, uses())
    local answer
    status, answer = admit.serve(request("k1", { token = token }), "192.0.2.1")
    assert.equal(200, status, tostring(answer))
    local n = state.get("/node/" .. answer.node_id)
    assert.same({ "worker-host", { t = "1", seen = "yes" }, "worker" }, { n.name, n.labels, n.role })
    -- Said again it is the same node, whatever a policy says.
    store.set("p", [[return { hooks = { ["admit.join"] = function() return refuse("no") end } }]], "me")
    assert.equal(200, (admit.serve(request("k1", { token = token }), "192.0.2.1")))
    assert.truthy(told("policy.refused")[1].message:find("a join of worker bad from 192.0.2.1 is refused", 1, true))
  end))

  it("that a person approves are decided on too", joining([[
    if request.approved and request.labels.x then return refuse("not with x") end]], function()
    local _, answer = admit.serve(request "k1", "192.0.2.9")
    local id, fingerprint = answer.pending.id, answer.pending.fingerprint
    local n, err = admit.approve(id, { fingerprint = fingerprint, labels = { x = "1" } })
    assert.is_nil(n)
    assert.equal("denied", err.code)
    assert.truthy(admit.approve(id, { fingerprint = fingerprint, labels = {} }))
  end))

  it("are refused when a policy fails", joining([[error("oops")]], function()
    local status, err = admit.serve(request "k1", "192.0.2.1")
    assert.is_nil(status)
    assert.equal("policy_failed", err.code)
  end))
end)

describe("what others ask", function()
  it("gets a decision with its compares", cluster(function()
    store.set("p", policy [[if change.kind == "block" then
      if get("/kv/stop") then return refuse("stop") end
      return amend { size = change.new.size * 2 } end]], "me")
    local change = { kind = "block", key = "v1", action = "put", new = { size = 1 }, who = ME }
    local decision, compares, trace = engine.admit_change(change)
    assert.same({ true, { size = 2 }, { "p" } }, { decision.allow, decision.new, decision.policies })
    assert.same({ { prefix = "/policy/", revision = fake.revision }, { prefix = "/policy/", count = 1 },
      { key = "/kv/stop", absent = true } }, compares)
    assert.equal("amend", trace[1].said)
    fake.apply { ops = { state.put("/kv/stop", "1") } }
    decision = engine.admit_change(change)
    assert.same({ false, "denied", "p" }, { decision.allow, decision.error.code, decision.policy })
    decision = engine.admit_join { role = "worker", name = "w" }
    assert.same({ true, nil }, { decision.allow, decision.approve })
  end))

  it("gets a place among the candidates, or the default", cluster(function()
    local input = { want = 1, candidates = { { node_id = "n1" }, { node_id = "n2" } }, current = {} }
    assert.is_nil(engine.place("block", input))
    store.set("p", [[return { hooks = { ["place.block"] = function(i)
      if i.want == 2 then error("oops") end
      return choose { "n2", "elsewhere", "n2", "n1" } end } }]], "me")
    local list, by = engine.place("block", input)
    assert.same({ { "n2", "n1" }, "p" }, { list, by })
    assert.is_nil(engine.place("other", input))
    input.want = 2
    assert.is_nil(engine.place("block", input))
  end))

  it("gets a trace of who said what", cluster(function()
    store.set("b", policy [[return refuse("no " .. (get("/kv/a") or "a"))]], "me")
    store.set("a", policy [[return allow()]], "me")
    local row = engine.explain("admit.change", { kind = "kv", key = "x", new = "1" }, { ["/kv/a"] = "A" })
    assert.same({ false, "no A", "denied", "b" }, { row.allow, row.refuse, row.code, row.policy })
    assert.same({ { "a", "allow" }, { "b", "refuse" } }, { { row.policies[1].policy, row.policies[1].said },
      { row.policies[2].policy, row.policies[2].said } })
    assert.same({}, engine.explain("node.down", { node = {} }).policies)
    fails("invalid", "there is no hook", engine.explain, "node.dawn", {})
    assert.is_true(errors.is(select(2, pcall(engine.explain, "node.dawn", {}))))
  end))
end)
