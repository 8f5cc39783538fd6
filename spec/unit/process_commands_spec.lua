-- contrib/services/process/commands.lua: what people type about programs, with workers that answer anything.
package.path = "contrib/?.lua;" .. package.path
local fake = require "spec.unit.cluster_fake"
local async = require "symphony.async"
local errors = require "symphony.errors"
local identity = require "symphony.cluster.identity"
local remote = require "symphony.cluster.remote"
local resources = require "symphony.services.resources"
local state = require "symphony.cluster.state"

local WORKER = { node_id = "1", name = "w1", role = "worker", remote_address = "127.0.0.1:1" }

identity.tls = {}
function identity.role() return "manager" end
function state.read() return {} end
function state.node() return WORKER end
function resources.get(_, id) return { id = id, nodes = { { node_id = "1", name = "w1" } } } end

local function command(name)
  for _, c in ipairs(require "services.process.commands") do
    if c.name:match("%S+") == name then return c end
  end
end

-- `process logs web` with a worker that gives these answers, the last one again and again, at most 20 times: what is
-- returned, what is printed on both outputs, how often was asked, and how often there was a pause before that.
local function logs(answers, args)
  local out, err, asked, pauses, sleep = {}, {}, 0, 0, async.sleep
  function remote.call()
    asked = asked + 1
    assert(asked <= 20, "there is no end to it")
    return answers[math.min(asked, #answers)], 200, { peer = { cn = "1" } }
  end
  args = args or {}
  args.name = "web"
  local ok, why
  function async.sleep(ms)
    if ms > 0 then pauses = pauses + 1 end
    return sleep(0)
  end
  local _ <close> = setmetatable({}, { __close = function() async.sleep = sleep end })
  fake.run(function()
    ok, why = command("logs").run { args = args, out = function(text) out[#out + 1] = text end,
      err = function(text) err[#err + 1] = text end }
  end)
  return { ok = ok, why = why, out = table.concat(out), err = table.concat(err), asked = asked, pauses = pauses }
end

describe("process logs", function()
  it("asks for one piece after the other", function()
    local got = logs { { text = "a\n", at = 2, stop = 4, mark = "m" },
      { text = "b\n", at = 4, stop = 4, mark = "m", over = true } }
    assert.same({ ok = true, out = "a\nb\n", err = "", asked = 2, pauses = 0 }, got)
  end)

  it("does not ask on and on a worker that gives nothing new", function()
    for _, last in ipairs { { text = "", at = 2 }, { text = "a\n", at = 2 }, { text = "a\n", at = "x" },
      { text = "a\n" } } do
      local got = logs { { text = "a\n", at = 2, stop = 4, mark = "m" }, last }
      assert.is_nil(got.ok)
      assert.equal("protocol", got.why.code)
      assert.truthy(got.why.message:find("w1", 1, true), got.why.message)
    end
    local got = logs({ { text = "", at = 0 }, { text = "a\n", at = 2 }, { text = "", at = 2 },
      { text = "", at = 2, over = true } }, { follow = true })
    assert.same({ ok = true, out = "a\n", err = "", asked = 4, pauses = 2 }, got)
  end)

  it("takes no other answer for an empty log", function()
    for _, answer in ipairs { false, 5, "text" } do
      local got = logs { answer }
      assert.is_nil(got.ok)
      assert.is_true(errors.is(got.why) and got.why.code == "protocol")
    end
  end)

  it("lets nothing that a worker says move the cursor", function()
    local got = logs { { text = "", at = 0, gone = "\27[2J1", over = true } }
    assert.equal("w1: \\x1b[2J1 bytes were cut before they could be read\n", got.err)
  end)
end)

describe("process inspect", function()
  -- The text of the resource @row.
  local function text(row)
    function resources.get() return row end
    local shown
    fake.run(function()
      local data, how = command("inspect").run { args = { name = { "web" } } }
      shown = how.text(data)
    end)
    return shown
  end

  local function row()
    return { kind = "process", service = "process", id = "web", generation = 1, spec = {}, replicas = 2, missing = 1,
      move = "start-first",
      nodes = { { name = "w1", state = "running", generation = 1, detail = { pid = 5, started = 1796067968 } } } }
  end

  it("shows times as times", function()
    local shown = text(row())
    assert.truthy(shown:find("pid 5, started 2026-11-30 19:46:08 UTC", 1, true), shown)
    for _, v in ipairs { math.maxinteger, -1, 0.5, "soon" } do
      local odd = row()
      odd.nodes[1].detail.started = v
      assert.truthy(text(odd):find("started " .. v, 1, true))
    end
  end)

  it("shows all that can be set, also what nobody has", function()
    local shown = text(row())
    for _, line in ipairs { "replicas         2", "move             start-first", "move-after       60 s",
      "rollout-timeout  60 s" } do
      assert.truthy(shown:find("\n" .. line .. "\n", 1, true), shown)
    end
    local other = row()
    other.move_after, other.rollout_s = 0, 5
    shown = text(other)
    assert.truthy(shown:find("move-after       0 s\nrollout-timeout  5 s\n", 1, true), shown)
  end)

  it("shows nothing of placement where there is none", function()
    local none = row()
    none.replicas = nil
    assert.is_nil(text(none):find("replicas", 1, true) or text(none):find("move", 1, true))
  end)
end)

describe("process run", function()
  it("ends with the status of a wrong command line, whichever option is wrong", function()
    for _, name in ipairs { "env", "label" } do
      local args = { name = "web", command = { "/bin/true" }, env = {}, label = {} }
      args[name] = { "nope" }
      local ok, err = pcall(command("run").run, { args = args })
      assert.is_false(ok)
      assert.equal(2, errors.exit_code(err), tostring(err))
    end
  end)
end)
