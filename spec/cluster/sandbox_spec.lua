-- The policies' process of a real daemon, driven through its console (sym.policy).
local cluster = require "spec.support.cluster"
local json = require "spec.support.json"
local uv = require "luv"

-- Evaluates @code in the daemon; what it returns, decoded.
local function eval(m, code, ...)
  local result = m:cli("--timeout", "60", "lua", "-e", ([[
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
    return json.encode(run())]]):format(code:format(...)))
  assert(result.code == 0, result.err .. result.out)
  return json.decode(json.decode(result.out) or result.out), result.out
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
end)
