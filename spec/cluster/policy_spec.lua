-- Policies in real clusters: set, replicated, bound to what they saw, and contained.
local clients = require "spec.support.clients"
local cluster = require "spec.support.cluster"
local json = require "spec.support.json"
local proc = require "spec.support.proc"
local uv = require "luv"

-- A policy of one hook, in a file; its name.
local function file(t, name, source)
  local path = ("%s/%s.lua"):format(t.root, name)
  proc.write_file(path, source)
  return path
end

local function hook(name, body, more)
  return ([[return { %s hooks = { ["%s"] = function(input) %s end } }]]):format(more or "", name, body)
end

local function set(t, m, name, source)
  return m:json("policy", "set", name, file(t, name, source))
end

local ONE = hook("admit.change", [[
  local folder = input.key:match("^one/[^/]+/")
  if folder and input.old == nil and count("/kv/" .. folder) >= 1 then return refuse("one is enough") end]],
  [[summary = "One key for each folder", match = { ["admit.change"] = { kinds = { "kv" }, keys = { "one/*" } } },]])

local function told(m, kind)
  return m:json("events", "--kind", kind)
end

-- Makes all @requests ({method, path, body, mark}) at once by way of manager @m; a function that waits, and gives the
-- status of each by its mark.
local function at_once(m, requests)
  local words = { "curl", "--parallel", "--parallel-immediate", "--parallel-max", "64" }
  for i, r in ipairs(requests) do
    if i > 1 then words[#words + 1] = "--next" end
    for _, word in ipairs { "-s", "--unix-socket", m.socket, "-X", r.method, "-d", r.body, "-o", "/dev/null", "-w",
      "%{http_code} " .. r.mark .. "\n", "http://localhost" .. r.path } do
      words[#words + 1] = word
    end
  end
  local call = proc.begin(words)
  return function()
    cluster.wait_for("all to be answered", 30, call.ended)
    local status = {}
    for code, mark in call.out:gmatch("(%d+) (%S+)\n") do status[mark] = tonumber(code) end
    return status
  end
end

-- A put of @key, by itself or in a txn.
local function put_of(key, in_txn)
  if not in_txn then return { method = "PUT", path = "/v1/kv/" .. key, body = "x", mark = key } end
  return { method = "POST", path = "/v1/txn", mark = key,
    body = json.encode { ops = { { put = "beside/" .. key, value = "x" }, { put = key, value = "x" } } } }
end

-- One without a clear answer may have been the one that passed.
local function is_unclear(code)
  return code == 503 or code == 504 or code == 0
end

-- Puts many keys into each of @n folders at once, through every manager, by themselves and in txns; then each folder
-- has one, and one put of it was answered with 200.
local function race(list, round, n)
  local waits = {}
  for i, m in ipairs(list) do
    local requests = {}
    for folder = 1, n do
      for k = 1, 4 do
        table.insert(requests, put_of(("one/%s-%d/%d-%d"):format(round, folder, i, k), k > 2))
      end
    end
    waits[i] = at_once(m, requests)
  end
  local passed, unclear, answers = {}, {}, 0
  for _, wait in ipairs(waits) do
    for key, code in pairs(wait()) do
      local folder = key:match("^(one/[^/]+/)")
      answers = answers + 1
      if code == 200 then passed[folder] = (passed[folder] or 0) + 1 end
      if is_unclear(code) then unclear[folder] = true end
      assert.is_true(code == 200 or code == 403 or code == 409 or is_unclear(code), key .. " gave " .. code)
    end
  end
  assert.equal(#list * n * 4, answers)
  for folder = 1, n do
    local name = ("one/%s-%d/"):format(round, folder)
    local there = #list[1]:json("kv", "ls", name)
    assert.is_true(there <= 1, ("%d keys in %s"):format(there, name))
    assert.is_true((passed[name] or 0) <= 1, name)
    if not unclear[name] then assert.same({ 1, 1 }, { there, passed[name] }, name) end
  end
end

describe("policies", function()
  it("are set on any manager, and the same on all; another leader has them", cluster.scenario(function(t)
    local list = t:cluster(3)
    local leader, others = t:leader()
    local p = set(t, others[1], "one", ONE)
    assert.same({ "one", 1, true, { "admit.change" } }, { p.name, p.version, p.enabled, p.hooks })
    for _, m in ipairs(list) do
      assert.equal("One key for each folder", m:json("policy", "ls")[1].summary)
      assert.equal(ONE, m:json("policy", "show", "one").source)
      assert.equal(ONE, m:cli("policy", "show", "one", "--source").out)
    end
    others[1]:json("kv", "put", "one/a/1", "x")
    for _, m in ipairs(list) do
      local err, result = m:fails("kv", "put", "one/a/2", "x")
      assert.same({ "denied", "policy one refuses: one is enough", "one", 4 }, { err.code, err.message, err.policy,
        result.code })
      assert.equal("denied", m:fails("txn", file(t, "txn", [[{"ops": [{"put": "one/a/3", "value": "x"}]}]])).code)
      local prompt = m:cli("lua", "-e", [[kv.put("one/a/4", "x")]])
      assert.is_true(prompt.code ~= 0 and prompt.err:find("one is enough", 1, true) ~= nil, prompt.err)
      assert.equal(0, m:cli("lua", "-e", [[kv.put("one/a/1", "by the prompt")]]).code)
      m:json("kv", "put", "elsewhere", "x")
      m:json("kv", "put", "one/a/1", "changed by " .. m.label)
    end
    leader:crash()
    local heir = t:leader()
    for _, m in ipairs(others) do
      assert.equal("denied", m:fails("kv", "put", "one/a/2", "x").code)
      m:json("kv", "put", "one/a/1", "y")
    end
    assert.equal("one", told(heir, "policy.refused")[1].policy)
    leader:start()
    assert.equal("denied", leader:fails("kv", "put", "one/a/2", "x").code)
    -- What is removed has no word any more, on any of them.
    leader:json("policy", "rm", "one")
    for i, m in ipairs(list) do
      assert.same({}, m:json("policy", "ls"))
      m:json("kv", "put", "one/a/" .. 1 + i, "x")
      m:json("kv", "rm", "one/a/" .. 1 + i)
    end
  end))

  it("let only one of many that write at once be the last that fits, also when the leader changes",
    cluster.scenario(function(t)
      local list = t:cluster(3)
      set(t, list[1], "one", ONE)
      race(list, "a", 12)
      local leader = t:leader()
      leader:json("manager", "transfer")
      race(list, "b", 8)
      -- In the middle of a change, and right after it.
      leader = t:leader()
      local before = leader:json("manager", "status").term
      local transfer = proc.begin { cluster.symphony, "--socket", leader.socket, "manager", "transfer" }
      race(list, "c", 2)
      cluster.wait_for("the transfer to end", 20, transfer.ended)
      assert.is_true(list[1]:json("manager", "status").term > before)
      leader = t:leader()
      leader:crash()
      local heir, others = t:leader()
      race({ heir, table.unpack(others) }, "d", 4)
    end))

  it("let only one of many be the last that fits, of resources and of nodes too", cluster.scenario(function(t)
    local dir, rounds = t:folder "own", 20
    assert(uv.fs_mkdir(dir .. "/services", 448))
    proc.write_file(dir .. "/services/shelf.lua",
      [[return { kind = "shelf", resources = { thing = { schema = {}, placed = false } } }]])
    local list = t:cluster(3, { flags = { "--lua-dir", dir } })
    set(t, list[2], "one", hook("admit.change", [[
      if input.kind == "thing" and not input.old then
        if count("/res/thing/" .. input.key:match("^r%d+%-")) >= 1 then return refuse("one is enough") end
      elseif input.kind == "node" then
        for _, node in ipairs(list("/node/")) do
          if node.value.node_id ~= input.key and (node.value.labels or {}).round == input.new.labels.round then
            return refuse("another has it")
          end
        end
      end]]))
    local function check(what, round, codes, there)
      local passed, unclear = 0, false
      for _, code in ipairs(codes) do
        assert.is_true(code == 200 or code == 403 or code == 409 or is_unclear(code), what .. " gave " .. code)
        passed, unclear = passed + (code == 200 and 1 or 0), unclear or is_unclear(code)
      end
      assert.is_true(passed <= 1 and there <= 1, ("%s %d: %d passed, %d there"):format(what, round, passed, there))
      if not unclear then assert.same({ 1, 1 }, { passed, there }, what .. " " .. round) end
    end
    local waits = {}
    for i, m in ipairs(list) do
      local requests = {}
      for round = 1, rounds do
        for k = 1, 2 do
          local id = ("r%d-%d-%d"):format(round, i, k)
          table.insert(requests, { method = "POST", path = "/v1/res/thing", body = json.encode { id = id }, mark = id })
        end
      end
      waits[i] = at_once(m, requests)
    end
    local codes = {}
    for _, wait in ipairs(waits) do
      for id, code in pairs(wait()) do
        local round = tonumber(id:match("^r(%d+)"))
        codes[round] = codes[round] or {}
        table.insert(codes[round], code)
      end
    end
    local there = {}
    for _, row in ipairs(list[1]:http("GET", "/v1/res/thing").json) do
      local round = tonumber(row.id:match("^r(%d+)"))
      there[round] = (there[round] or 0) + 1
    end
    for round = 1, rounds do
      assert.equal(6, #codes[round])
      check("thing", round, codes[round], there[round] or 0)
    end
    for round = 1, rounds do
      local body = json.encode { labels = { round = tostring(round) } }
      for i, m in ipairs(list) do
        waits[i] = at_once(m, { { method = "PATCH", path = "/v1/nodes/" .. i, body = body, mark = "n" .. i } })
      end
      local answers, n = {}, 0
      for _, wait in ipairs(waits) do
        for _, code in pairs(wait()) do answers[#answers + 1] = code end
      end
      for _, node in ipairs(list[1]:json("node", "ls")) do
        if (node.labels or {}).round == tostring(round) then n = n + 1 end
      end
      assert.equal(3, #answers)
      check("node", round, answers, n)
    end
  end))

  it("hold from the moment at which they are set, on whatever manager", cluster.scenario(function(t)
    local list = t:cluster(3)
    for i = 1, 6 do
      local at, elsewhere = list[i % 3 + 1], list[(i + 1) % 3 + 1]
      set(t, at, "closed", hook("admit.change", [[return refuse("closed")]]))
      assert.equal(403, elsewhere:http("PUT", "/v1/kv/k", "x").status)
      assert.equal(403, elsewhere:http("DELETE", "/v1/kv/k").status)
      assert.equal(403, elsewhere:http("POST", "/v1/txn", [[{"ops": [{"delete": "k"}]}]]).status)
      at:json("policy", "rm", "closed")
      assert.equal(200, elsewhere:http("PUT", "/v1/kv/k", "x").status)
    end
  end))

  it("do what is said twice once, whether they decide or not", cluster.scenario(function(t)
    local list = t:cluster(3)
    local _, others = t:leader()
    local m, other = others[1], others[2]
    local function put(at, key, target)
      local headers = ("Idempotency-Key: %s\r\n"):format(key)
      local answer = assert(at:http("PUT", "/v1/kv/" .. target, "x", { headers = headers }))
      return answer.status, answer.json
    end
    local status, first = put(m, "k1", "one/a/1")
    assert.same({ 200, nil }, { status, first.repeated })
    set(t, list[1], "one", ONE)
    local again
    status, again = put(other, "k1", "one/a/1") -- was done before there was a policy
    assert.same({ 200, first.revision, true }, { status, again.revision, again.repeated })
    status, first = put(m, "k2", "one/b/1")
    assert.equal(200, status)
    assert.equal(403, (put(m, "k3", "one/b/2")))
    list[1]:json("policy", "disable", "one")
    status, again = put(other, "k2", "one/b/1")
    assert.same({ 200, first.revision, true }, { status, again.revision, again.repeated })
    assert.equal(200, (put(other, "k3", "one/b/2"))) -- had not been done
  end))

  it("are taken only with a selftest that passes, and kept in versions", cluster.scenario(function(t)
    local list = t:cluster(1)
    local m = list[1]
    local function tested(expect, mark)
      return file(t, "p", ([[return { summary = "%s",
        hooks = { ["admit.change"] = function() return allow() end },
        selftest = { { name = "a case", hook = "admit.change", input = { kind = "kv" }, expect = %s } }
      }]]):format(mark, expect))
    end
    local bad, good = "{ refuse = true }", "{ allow = true }"
    local err = m:fails("policy", "set", "p", tested(bad, "x"))
    assert.equal("invalid", err.code)
    assert.truthy(err.message:find("1 of 1 cases of its selftest fail\na case: wanted", 1, true), err.message)
    assert.equal("invalid", m:fails("policy", "set", "p", file(t, "p", "return {")).code)
    assert.equal("not_found", m:fails("policy", "set", "p", t.root .. "/none").code)
    assert.same({}, m:json("policy", "ls"))
    for i = 1, 3 do assert.equal(i, m:json("policy", "set", "p", tested(good, "v" .. i)).version) end
    local rows = m:json("policy", "history", "p")
    assert.same({ 3, 2, 1, "v3", "v1" }, { rows[1].version, rows[2].version, rows[3].version, rows[1].summary,
      rows[3].summary })
    assert.equal(4, m:json("policy", "rollback", "p").version)
    assert.equal("v2", m:json("policy", "show", "p").summary)
    assert.equal(5, m:json("policy", "rollback", "p", "1").version)
    assert.equal("v1", m:json("policy", "show", "p").summary)
    assert.equal("not_found", m:fails("policy", "rollback", "p", "77").code)
    -- One that is removed can be looked at and had again; a version is named by its number.
    m:json("policy", "rm", "p")
    assert.equal("v2", m:json("policy", "show", "p", "--version", "2").summary)
    assert.equal("not_found", m:fails("policy", "show", "p").code)
    assert.same({ 2, 6 }, { m:json("policy", "rollback", "p", "2").back_to, m:json("policy", "show", "p").version })
    -- What is wrong is told as what it is.
    for _, name in ipairs { "a/b", "../x", "P" } do
      assert.truthy(m:fails("policy", "set", name, tested(good, "x")).message:find("^a policy's name is"))
    end
    assert.equal("the policy is empty", m:fails("policy", "set", "p", file(t, "p", "")).message)
    err = m:fails("policy", "set", "p", file(t, "p", "return '\xff'"))
    assert.truthy(err.message:find("no text in UTF-8", 1, true), err.message)
    -- What the tests of a file show.
    local result = m:cli("policy", "test", tested(bad, "x"))
    assert.equal(1, result.code)
    assert.truthy(result.out:find("FAIL  a case: wanted", 1, true), result.out)
    result = m:cli("policy", "test", tested(good, "x"))
    assert.same({ 0, "ok    a case\n1 passed, 0 failed\n" }, { result.code, result.out })
    assert.equal("policy.set", told(m, "policy")[1].kind)
    -- Nobody but those who hold a manager's socket may set one.
    local anna = clients.certificate(t, m, { cn = "anna", ou = "operator" })
    clients.refused(assert(clients.secure(m, anna, "PUT", "/v1/policies/p", "return {}")), 403, "denied")
    assert.equal(200, clients.secure(m, anna, "GET", "/v1/policies/p").status)
  end))

  it("show what would be: plan, trace, one input", cluster.scenario(function(t)
    local list = t:cluster(3)
    local _, others = t:leader()
    local m = others[1]
    set(t, m, "lower", hook("admit.change", [[return amend { new = input.new:lower() }]],
      [[order = 10, match = { ["admit.change"] = { kinds = { "kv" }, actions = { "put" } } },]]))
    set(t, m, "short", hook("admit.change", [[
      if input.kind == "node" then return refuse("not by " .. input.who.kind) end
      if input.new and #input.new > 3 then return refuse("longer than 3: " .. input.new) end]]))
    local before = m:json("kv", "put", "k", "ABC")
    assert.same({ "lower" }, before.policies)
    assert.equal("abc", list[1]:json("kv", "get", "k").value)
    assert.truthy(m:cli("kv", "put", "k", "AB").out:find("^revision %d+ %(amended by policy lower%)\n$"))
    local plan = m:json("kv", "put", "--plan", "k", "ABC")
    assert.same({ true, true, { { put = "k", value = "abc" } } }, { plan.plan, plan.allow, plan.ops })
    assert.same({ "lower", "amend", "short", "nothing" }, { plan.policies[1].policy, plan.policies[1].said,
      plan.policies[2].policy, plan.policies[2].said })
    plan = m:json("kv", "put", "--plan", "k", "ABCD")
    assert.same({ false, "denied", "short" }, { plan.allow, plan.code, plan.policy })
    assert.truthy(m:cli("kv", "put", "--plan", "k", "ABCD").out:find(
      "It would be refused: policy short refuses: longer than 3: abcd (denied)\nWhat the policies say:\n  lower  amend",
      1, true))
    plan = m:json("kv", "rm", "--plan", "k")
    assert.same({ true, 1, "short" }, { plan.allow, #plan.policies, plan.policies[1].policy })
    plan = m:json("node", "update", "--plan", "--label-add", "a=b", m.label == "manager-01" and "1" or "2")
    assert.same({ false, "policy short refuses: not by control" }, { plan.allow, plan.refuse })
    assert.equal("denied", m:fails("node", "update", "2", "--label-add", "a=b").code)
    plan = m:json("manager", "remove", "--plan", "3")
    assert.same({ false, "policy short: not by control", "short" }, { plan.allowed, plan.reason,
      plan.policies[2] and plan.policies[2].policy or plan.policies[1].policy })
    assert.equal("denied", m:fails("manager", "remove", "3").code)
    local trace = m:json("policy", "trace", "admit.change", "--input", [[{"kind": "kv", "key": "a", "action": "put",
      "new": "LONGER"}]])
    assert.same({ 2, "amend", "refuse", "longer than 3: longer" }, { #trace.policies, trace.policies[1].said,
      trace.policies[2].said, trace.refuse })
    assert.equal("No enabled policy has a word at node.down.\n", m:cli("policy", "trace", "node.down", "--input",
      "{}").out)
    for _, name in ipairs { "place.Foo", "place.a_b", "every.1w", "node.dawn" } do
      local err = m:fails("policy", "set", "odd", file(t, "odd", hook(name, "")))
      assert.truthy(err.message:find("there is no hook " .. name, 1, true), err.message)
      assert.equal("invalid", m:fails("policy", "trace", name, "--input", "{}").code)
    end
    local many = ([[match = { ["admit.change"] = { keys = { %s } } },]]):format(("'a',"):rep(17))
    assert.equal("invalid", m:fails("policy", "set", "odd", file(t, "odd", hook("admit.change", "", many))).code)
    local path = file(t, "lower", hook("admit.change", [[return amend { new = get("/kv/x") or "none" }]]))
    assert.equal('{"amend":{"new":"X"}}\n', m:cli("policy", "test", path, "--hook", "admit.change", "--input",
      [[{"kind": "kv", "new": "1"}]], "--state", [[{"/kv/x": "X"}]]).out)
    assert.equal('{"amend":{"new":"none"}}\n', m:cli("policy", "test", path, "--hook", "admit.change", "--input",
      [[{"kind": "kv", "new": "1"}]]).out)
  end))

  it("that fail refuse what they guard, ten times, and are disabled with an event", cluster.scenario(function(t)
    local m = t:cluster(1)[1]
    set(t, m, "bad", hook("admit.change", [[if input.key == "x" then error("oops") end]]))
    m:json("kv", "put", "fine", "1")
    for _ = 1, 9 do
      local err = m:fails("kv", "put", "x", "1")
      assert.same({ "policy_failed", "bad" }, { err.code, err.policy })
    end
    assert.is_true(m:json("policy", "show", "bad").enabled)
    m:fails("kv", "put", "x", "1")
    local event = cluster.wait_for("it to be disabled", 10, function() return told(m, "policy.disabled")[1] end)
    assert.same({ "bad", true }, { event.policy, event.reason:find("failed 10 times in a row", 1, true) ~= nil })
    m:json("kv", "put", "x", "1")
    local p = m:json("policy", "show", "bad")
    assert.same({ false, event.reason }, { p.enabled, p.reason })
    assert.equal("policy bad is disabled: " .. event.reason, m:json("manager", "status").warnings[1])
    assert.is_true(m:json("policy", "enable", "bad").enabled)
    assert.equal("policy_failed", m:fails("kv", "put", "x", "1").code)
  end))

  it("that their process does not load again are tried again, and close what they guard meanwhile", cluster.scenario(
    function(t)
      local m = t:cluster(1)[1]
      set(t, m, "long", "for i = 1, 100000 do end " .. hook("admit.change", "return allow()",
        [[match = { ["admit.change"] = { keys = { "guarded/*" } } },]]))
      m:json("kv", "put", "guarded/x", "1")
      local function configure(instructions)
        clients.evaluate(m, ([[require("sym.policy").configure { instructions = %d }
          return { done = true }]]):format(instructions))
      end
      configure(10000)
      for i = 1, 12 do
        local answer = m:http("PUT", "/v1/kv/guarded/" .. i, "x")
        assert.equal(503, answer.status, answer.body)
        assert.truthy(answer.body:find("does not load again", 1, true), answer.body)
        assert.equal(200, m:http("PUT", "/v1/kv/other/" .. i, "x").status)
      end
      local p = m:json("policy", "ls")[1]
      assert.same({ true, "it did not come to an end within 10000 instructions" }, { p.enabled, p.broken })
      assert.truthy(m:cli("policy", "ls").out:find("long%s+broken"))
      configure(1000000)
      cluster.wait_for("it to be loaded again", 10, function() return not m:json("policy", "show", "long").broken end)
      m:json("kv", "put", "guarded/x", "2")
      assert.is_true(m:json("policy", "show", "long").enabled)
    end))

  it("that hang keep nobody waiting but those on whom they decide", cluster.scenario(function(t)
    local list = t:cluster(3)
    local leader, others = t:leader()
    local term = leader:json("manager", "status").term
    -- So long that whatever waited for it would be seen to.
    for _, m in ipairs(list) do
      clients.evaluate(m, [[require("sym.policy").configure { deadline_ms = 2000, instructions = 1000000000 }
        return { done = true }]])
    end
    -- One that looks for a match in all the ways there are.
    set(t, leader, "hangs", hook("admit.change", [[return (("a"):rep(5000)):find((".-"):rep(20) .. "b") and allow()]],
      [[match = { ["admit.change"] = { keys = { "hang/*" } } },]]))
    for _, m in ipairs { leader, others[1] } do
      local hung = proc.begin { "curl", "-s", "--unix-socket", m.socket, "-X", "PUT", "-d", "x",
        "http://localhost/v1/kv/hang/x" }
      cluster.wait_for("the policy to run", 10, function()
        return clients.evaluate(m, [[return { n = require("sym.policy").stats().waiting }]]).n > 0
      end)
      for i, each in ipairs(list) do
        assert.equal(200, each:http("PUT", "/v1/kv/other/" .. i, "x").status)
        assert.equal(200, each:http("GET", "/v1/kv/other/" .. i).status)
        assert.equal(200, each:http("GET", "/healthz").status)
        assert.equal(200, each:http("GET", "/v1/nodes").status)
      end
      assert.is_falsy(hung.ended(), hung.out)
      cluster.wait_for("the hung one to be answered", 60, hung.ended)
      assert.truthy(hung.out:find('"code":"policy_failed"', 1, true), hung.out)
      assert.truthy(hung.out:find('"policy":"hangs"', 1, true), hung.out)
    end
    assert.equal(term, leader:json("manager", "status").term)
  end))

  it("let nodes in, or not, and give them names and labels", cluster.scenario(function(t)
    local m = t:cluster(1)[1]
    set(t, m, "dev", assert(proc.read_file("contrib/policies/dev.lua")))
    set(t, m, "names", hook("admit.join", [[
      if input.labels.no then return refuse("no") end
      input.labels.seen = input.token and "with-token" or "without"
      return amend { labels = input.labels }]]))
    local w = t:worker():start()
    local joined = w:json("block", "join", m:remote(), "--name", "w1") -- without a token
    local row = m:json("node", "inspect", joined.node_id)[1]
    assert.same({ "w1", { seen = "without" } }, { row.name, row.labels })
    local event = m:json("events", "--kind", "node.joined", "--node", "w1")[1]
    assert.truthy(event.message:find("approved by a policy (amended by policy names)", 1, true), event.message)
    assert.same({ "names", "dev" }, { event.policies[2], event.policies[1] })
    local token = m:json("token", "create", "--label", "no=1").token
    local other = t:worker():start()
    local err = other:fails("block", "join", m:remote(), "--token", token)
    assert.same({ "denied", "policy names refuses: no" }, { err.code, err.message:match("policy names.*") })
    assert.equal("names", told(m, "policy.refused")[1].policy)
  end))

  it("react on the leader to nodes that go down and come back, and to time", cluster.scenario(function(t)
    local list = t:cluster(3)
    local workers = t:join_workers(1, list[1])
    local w = workers[1]
    t:wait_status(workers, "ready", list[1])
    set(t, list[1], "fanout", assert(proc.read_file("contrib/policies/fanout.lua")))
    set(t, list[1], "tick", hook("every.1s", [[if not get("/kv/tick") then return { kv_put("tick", "yes") } end]]))
    list[1]:json("kv", "put", "fanout/drain", "yes")
    cluster.wait_for("the time to come", 20, function() return list[2]:cli("kv", "get", "tick").code == 0 end)
    w:crash()
    local function key(name)
      local got = list[1]:cli("kv", "get", name)
      return got.code == 0 and got.out or nil
    end
    cluster.wait_for("the worker to be drained", 30, function()
      return list[1]:json("node", "inspect", w.node_id)[1].availability == "drain"
    end)
    assert.truthy(key("hook/nodes/" .. w.node_id):find('"event":"down"', 1, true))
    local event = list[2]:json("events", "--kind", "node.updated", "--node", w.node_id)[1]
    assert.equal("fanout", event.policy)
    -- The next leader goes on with it.
    local leader = t:leader()
    leader:json("manager", "transfer")
    w:start()
    cluster.wait_for("the worker to be active", 30, function()
      return list[1]:json("node", "inspect", w.node_id)[1].availability == "active"
    end)
    assert.truthy(key("hook/nodes/" .. w.node_id):find('"event":"up"', 1, true))
    assert.is_nil(key("fanout/drained/" .. w.node_id))
    assert.is_truthy(cluster.wait_for("the leader's name", 10, function() return key "hook/leader" end))
  end))

  it("are held back where they react too often", cluster.scenario(function(t)
    local m = t:cluster(1)[1]
    set(t, m, "busy", hook("every.1s", [[
      local list = {}
      for i = 1, 15 do list[i] = kv_put("busy/" .. input.now .. "/" .. i, "x") end
      return list]]))
    set(t, m, "calm", hook("every.1s", [[if not get("/kv/calm") then return { kv_put("calm", "yes") } end]]))
    local event = cluster.wait_for("it to be told", 20, function() return told(m, "policy.limited")[1] end)
    assert.equal("busy", event.policy)
    cluster.wait_for("the other to go on", 10, function() return m:cli("kv", "get", "calm").code == 0 end)
    -- Twenty at once, and one more every six seconds of this test.
    assert.is_true(#m:json("kv", "ls", "busy/") < 40)
    m:json("policy", "rm", "busy")
  end))

  it("are in a backup, and work where it is restored", cluster.scenario(function(t)
    local m = t:cluster(1)[1]
    set(t, m, "one", hook("admit.change", "return allow()"))
    set(t, m, "one", ONE)
    m:json("kv", "put", "one/a/1", "x")
    local path = t.root .. "/backup"
    m:json("cluster", "backup", path)
    m:json("policy", "rm", "one")
    m:json("kv", "put", "one/a/2", "x")
    m:json("cluster", "restore", path, "--yes")
    assert.same({ 1, 2 }, { #m:json("kv", "ls", "one/"), #m:json("policy", "history", "one") })
    assert.equal("denied", m:fails("kv", "put", "one/a/2", "x").code)
  end))

  it("take keys and values of any bytes", cluster.scenario(function(t)
    local m = t:cluster(1)[1]
    set(t, m, "p", hook("admit.change", [[
      if input.new == "no\u{FFFD}" then return refuse(input.new_base64 .. " " .. tostring(input.key_base64)) end]]))
    assert.equal(200, m:http("PUT", "/v1/kv/a%FF%0A", "yes\255").status)
    local answer = m:http("PUT", "/v1/kv/a%FF", "no\255")
    assert.equal("policy p refuses: bm// Yf8=", answer.json.error.message)
    assert.equal(1, #m:json("kv", "ls", "a"))
  end))
end)
