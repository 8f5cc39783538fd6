-- The programs as `cmake --install` puts them below SYMPHONY_PREFIX: they run from there, by their own Lua tree.
local uv = require "luv"
local cluster = require "spec.support.cluster"
local proc = require "spec.support.proc"

local prefix = assert(os.getenv("SYMPHONY_PREFIX"), "SYMPHONY_PREFIX: where symphony is installed")

describe("the installed symphony", function()
  it("has everything in its place", function()
    for _, path in ipairs { "bin/symphony", "sbin/symphonyd", "share/symphony/lua/symphony/boot.lua",
      "share/symphony/contrib/systemd/symphonyd-manager.service",
      "share/symphony/contrib/systemd/symphonyd-block.service", "share/man/man1/symphony.1",
      "share/bash-completion/completions/symphony", "share/zsh/site-functions/_symphony",
      "share/fish/vendor_completions.d/symphony.fish", "share/symphony/contrib/services/process.lua",
      "share/symphony/contrib/prometheus/alerts.yml", "share/symphony/contrib/dashboards/symphony.json",
      "share/man/man8/symphonyd.8" } do
      assert.truthy(uv.fs_stat(prefix .. "/" .. path), path .. " is not installed")
    end
  end)

  it("runs from there", cluster.scenario(function(t)
    cluster.symphonyd, cluster.symphony = prefix .. "/sbin/symphonyd", prefix .. "/bin/symphony"
    local m = t:cluster(3)
    m[1]:json("kv", "put", "a", "1")
    assert.equal("1", m[3]:json("kv", "get", "a").value)
    t:wait_status(t:join_workers(1, m[1]), "ready", m[2])
    for _, path in ipairs { "/sbin/symphonyd", "/bin/symphony" } do
      assert.equal(0, proc.run({ prefix .. path, "--version" }).code)
    end
    local where = m[1]:cli("lua", { stdin = "package.searchpath('symphony.boot', package.path)\n" })
    assert.truthy(where.out:find(prefix .. "/share/symphony/lua/symphony/boot.lua", 1, true), where.out .. where.err)
    assert.equal(0, cluster.cli("/nonexistent", "help").code)
  end))

  it("carries libraft, parts of which are replaced by our own", function()
    local libraries = proc.run({ "ldd", prefix .. "/sbin/symphonyd" })
    assert.equal(0, libraries.code, libraries.err)
    assert.falsy(libraries.out:find("libraft", 1, true), libraries.out)
  end)

  local function unit_of(role)
    return assert(proc.read_file(prefix .. "/share/symphony/contrib/systemd/symphonyd-" .. role .. ".service"))
  end

  for _, role in ipairs { "manager", "block" } do
    it("has a unit for " .. role .. " that systemd understands", function()
      local unit = unit_of(role)
      assert.truthy(unit:find("\nExecStart=" .. prefix .. "/sbin/symphonyd " .. role .. " ", 1, true), unit)
      local ok = pcall(proc.run, { "systemd-analyze", "--version" })
      if not ok then return pending("no systemd-analyze here") end
      local folder = proc.temp_folder()
      local name = "symphonyd-" .. role .. ".service"
      proc.write_file(folder .. "/" .. name, (unit:gsub("Documentation=[^\n]*\n", "")))
      local result = proc.run({ "systemd-analyze", "verify", folder .. "/" .. name })
      proc.remove_tree(folder)
      assert.equal(0, result.code, result.err)
      assert.falsy(result.err:find(name, 1, true), result.err)
    end)

    it("has a unit for " .. role .. " that waits longer for the end than the daemon does", function()
      local patience = assert(proc.read_file("src/daemon/daemon_stop.c")):match("PATIENCE_MS = (%d+)")
      assert.is_true(tonumber(unit_of(role):match("\nTimeoutStopSec=(%d+)\n")) * 1000 > tonumber(patience))
    end)
  end

  it("shuts both in alike", function()
    local function walls(role) return (unit_of(role):match("\nNoNewPrivileges.*$")) end
    assert.equal(walls "manager", walls "block")
  end)
end)
