-- What a worker does with a service whose file is taken away; the rest of it is spec/cluster/services_spec.lua's.
local fake = require "spec.unit.cluster_fake"
local agent = require "symphony.cluster.agent"
local async = require "symphony.async"
local here = require "symphony.services.here"
local outbox = require "symphony.services.outbox"
local registry = require "symphony.services.registry"
local worker = require "symphony.services.worker"

-- A service whose jars are the keys of @jars.
local function pantry(kind, jars)
  return { kind = kind, resources = { jar = { schema = {} } }, actual = function() return jars end,
    reconcile = function(ctx, desired)
      jars[ctx.id] = desired and true or nil
      return desired and { state = "running" } or nil
    end }
end

local function set(...)
  local rows = {}
  for i, module in ipairs { ... } do
    assert(registry.check(module))
    rows[i] = { module = module, file = module.kind .. ".lua" }
  end
  registry.set_own(rows)
end

describe("the services of a worker", function()
  local assigned, warned, heard
  local real = { on = agent.on, view = agent.view, warn = package.loaded["sym.log"].warn }
  local reported = { ["symphony.cluster.worker"] = { report = function() return true end },
    ["symphony.cluster.gossip"] = { announce = function() end } }

  local function scenario(fn)
    return fake.task(function()
      fake.reset()
      assigned, warned = {}, {}
      function agent.on(f) heard = f end
      function agent.view() return { assigned = assigned } end
      package.loaded["sym.log"].warn = function(text) warned[#warned + 1] = text end
      local before = {}
      for name, stub in pairs(reported) do before[name], package.loaded[name] = package.loaded[name] or false, stub end
      local _ <close> = setmetatable({}, { __close = function()
        worker.stop()
        agent.on, agent.view, package.loaded["sym.log"].warn = real.on, real.view, real.warn
        for name, module in pairs(before) do package.loaded[name] = module or nil end
        set()
      end })
      fn()
    end)
  end

  local function begin(...)
    set(...)
    worker.start()
    heard "synced"
    async.sleep(0)
  end

  local function reload(...)
    set(...)
    worker.reloaded()
    async.sleep(0)
  end

  local function assign(id)
    assigned["jar/" .. id] = { uid = "u", generation = 1, spec = {} }
    worker.wake("jar", id)
    async.sleep(0)
  end

  it("are kept while there is something of theirs, and get to their end", scenario(function()
    local jars = {}
    local module = pantry("pantry", jars)
    begin(module)
    assign "figs"
    assert.same({ figs = true }, jars)
    reload()
    assert.same({ { "pantry" }, module, true }, { here.leaving(), here.get "pantry" })
    assert.truthy(warned[1]:find("pantry is not here any more", 1, true))
    local status = outbox.list()["jar/figs"]
    assert.truthy(status.state == "running" and status.message:find("not on this worker any more", 1, true))
    assigned["jar/figs"] = nil
    worker.wake("jar", "figs")
    async.sleep(0)
    worker.look_at_all()
    assert.same({ {}, {} }, { jars, here.leaving() })
    assert.is_nil((here.of "jar"))
  end))

  it("are not told to go on when there is nothing of theirs", scenario(function()
    begin(pantry("pantry", {}))
    reload()
    assert.same({ {}, {} }, { warned, here.leaving() })
  end))

  it("are as before when the file is back", scenario(function()
    local jars = {}
    local module = pantry("pantry", jars)
    begin(module)
    assign "figs"
    reload()
    local newer = pantry("pantry", jars)
    reload(newer)
    assert.same({ newer, false, {} }, { here.get("pantry"), select(2, here.get "pantry"), here.leaving() })
    assert.is_nil(outbox.list()["jar/figs"].message)
  end))

  it("give what is theirs to another that has taken it over", scenario(function()
    local jars = {}
    begin(pantry("pantry", jars))
    assign "figs"
    local other = pantry("larder", jars)
    reload(other)
    assert.same({ {}, other }, { here.leaving(), (here.of "jar") })
    assert.same({ figs = true }, jars)
  end))
end)
