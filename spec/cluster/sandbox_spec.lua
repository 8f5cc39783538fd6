-- The policies' process of a real daemon, driven through its console (sym.policy).
local cluster = require "spec.support.cluster"
local http = require "spec.support.http"
local json = require "spec.support.json"
local proc = require "spec.support.proc"
local uv = require "luv"

-- What every piece of code below has around it.
local function program(code)
  return ([[
    local policy, async, json = require "sym.policy", require "symphony.async", require "symphony.json"
    local function load(name, body)
      local source = ("return { hooks = { ['admit.change'] = function(c) %%s end } }"):format(body)
      return async.await(policy.load, name, source)
    end
    local function call(input, opts)
      local text, err = async.await(policy.call, "admit.change", json.encode(input), opts)
      local out = text and json.decode(text) or { code = err.code, policy = err.policy, message = err.message }
      return out
    end
    local function run() %s end
    return json.encode(run())]]):format(code)
end

local function decoded(out)
  return json.decode(json.decode(out) or out)
end

-- Evaluates @code in the daemon; what it returns, decoded.
local function eval(m, code)
  local result = m:cli("--timeout", "60", "lua", "-e", program(code))
  assert(result.code == 0, result.err .. result.out)
  return decoded(result.out)
end

-- The same, while other requests are answered; the slowest of them, in seconds.
local function eval_beside(m, code)
  local eval_call = proc.begin { cluster.symphony, "--socket", m.socket, "--timeout", "60", "lua", "-e", program(code) }
  local slowest, n = 0, 0
  repeat
    local began = uv.hrtime()
    local answer = assert(http.call(m.socket, "PUT", "/v1/kv/other", "x", { timeout = 10 * cluster.patience }))
    assert.equal(200, answer.status, answer.body)
    slowest, n = math.max(slowest, (uv.hrtime() - began) / 1e9), n + 1
  until eval_call.ended()
  assert(eval_call.process.code == 0, eval_call.err .. eval_call.out)
  assert.is_true(n > 0)
  return decoded(eval_call.out), slowest
end

local function alive(pid)
  return uv.kill(pid, 0) == 0
end

describe("policies in their own process", function()
  it("are loaded, asked and dropped; the process starts with the first and ends with the daemon", cluster.scenario(
    function(t)
      local m = t:cluster(1)[1]
      assert.equal(0, eval(m, "return policy.stats()").pid)
      m:json("kv", "put", "limit", "3")
      local got = eval(m, [[
        assert(load("quota", "local n = count('/kv/') if c.new == get('/kv/limit') then return refuse('at ' .. n) end"))
        return { call { kind = "kv", key = "a", new = "3" }, call { kind = "kv", key = "a", new = "2" } } ]])
      assert.same({ refuse = "at 1", policy = "quota" }, got[1].decision)
      assert.equal(2, #got[1].reads)
      assert.equal("/kv/", got[1].reads[1].prefix)
      assert.equal(1, got[1].reads[1].count)
      assert.is_true(got[1].reads[1].revision > 0)
      assert.equal(got[1].reads[1].revision, got[1].reads[2].revision)
      assert.equal("nothing", got[2].trace[1].said)
      local stats = eval(m, "return policy.stats()")
      assert.is_true(alive(stats.pid))
      assert.equal(1, stats.policies)
      assert.is_true(stats.memory < 200 * 1024)
      m:stop()
      assert.is_false(alive(stats.pid))
    end))

  it("are gone when the daemon is killed", cluster.scenario(function(t)
    local m = t:cluster(1)[1]
    eval(m, [[assert(load("good", "return allow()")) return 1]])
    local pid = eval(m, "return policy.stats()").pid
    assert.is_true(alive(pid))
    m:crash()
    cluster.wait_for("the process of the policies to end", 10, function() return not alive(pid) end)
  end))

  -- With what a policy is given these can only fail; with Lua's whole library, which is more than any policy gets, it
  -- is the process that holds them.
  local attacks = {
    "while true do end",
    "pcall(function() while true do end end) while true do end",
    "while true do pcall(function() while true do end end) end",
    "local co = coroutine.create(function() while true do end end) while true do coroutine.resume(co) end",
    "return #setmetatable({}, { __len = function() while true do end end })",
    "setmetatable({}, { __gc = function() while true do end end }) collectgarbage() while true do end",
    "debug.sethook() while true do end",
    "local s = ('x'):rep(1 << 30) return refuse(#s)",
    "local s = ('a'):rep(30000) s:find(('a-'):rep(20) .. 'b') while true do end",
    "local s = ('a'):rep(30000) while true do s:gsub('.-b', '') end",
    "local t = {} for i = 1, 1e5 do t[i] = 'x' end while true do table.concat(t, ('y'):rep(1e4)) end",
    "table.move({}, 1, 1e9, 2) while true do end",
    "local t = {} for i = 1, 2e5 do t[i] = -i end while true do table.sort(t) end",
    "while true do ('%99.99f'):format(1e300) end",
    "local function f() return 1 + f() end while true do pcall(f) end",
    "local s = 'x' while true do s = s .. s end",
    "local t = {} while true do t[#t + 1] = ('x'):rep(1000) end",
    "for i = 1, 1e9 do local t = {} for j = 1, 1e5 do table.insert(t, 1, j) end end",
    "io.open('/etc/passwd') while true do end",
    "io.popen('id') while true do end",
    "os.execute('id') while true do end",
    "os.remove('/tmp/nothing-of-that-name') while true do end",
    "os.rename('/tmp/nothing-of-that-name', '/tmp/another') while true do end",
    "os.exit(0)",
    "while true do io.write(('x'):rep(1e6)) end",
    "package.loadlib('libc.so.6', '*') while true do end",
    "load(string.dump(function() end):gsub('.', 'x', 20))() while true do end",
    "require('luv') while true do end",
    "local t = {} for i = 1, 1e6 do t[i] = coroutine.create(print) end while true do end",
  }
  local function attacked(full)
    return cluster.scenario(function(t)
      local m = t:cluster(1)[1]
      local worst, which = 0, nil
      -- Few instructions and much time, so that the deadline is not what ends it where it need not be.
      eval(m, ("policy.configure{ full = %s, instructions = %d, deadline_ms = %d } return 1"):format(full,
        full and 5000000 or 500000, full and 100 or 5000))
      for _, body in ipairs(attacks) do
        local got, slowest = eval_beside(m, ([=[
          assert(load("good", "return allow()"))
          assert(load("bad", [==[if c.new == "now" then %s end]==]))
          local bad = call({ new = "now" }, { only = { "bad" } })
          return { bad, call({ new = "later" }) } ]=]):format(body))
        assert(got[1].code == "policy_failed" or got[1].code == "policy_timeout" or got[1].code == "policy_died",
          body .. ": " .. json.encode(got[1]))
        assert.equal("bad", got[1].policy, body)
        if not full then assert.equal("policy_failed", got[1].code, body .. ": " .. json.encode(got[1])) end
        assert.same({ allow = true, policy = "good" }, got[2].decision, body .. ": " .. json.encode(got[2]))
        if slowest > worst then worst, which = slowest, body end
      end
      print(("slowest other request: %.1f ms, beside: %s"):format(worst * 1000, which))
      assert.is_true(worst < cluster.patience) -- an idle machine answers within 0.1 s: see what is printed
      local stats = eval(m, "return policy.stats()")
      assert.is_true(full and stats.killed > 5 or not full and stats.killed == 0, json.encode(stats))
    end)
  end

  it("fail at what they may not do, and others are answered meanwhile", attacked(false))
  it("are held by their process also with all of Lua's library", attacked(true))
end)
