-- symphony reload: the operator's own modules again. Runs in the daemon.
return {
  name = "reload",
  summary = "Load the modules of --lua-dir again",
  description = [[
Loads the commands and services of this daemon's --lua-dir folders again. A module that cannot be
loaded is named with the line and the reason, and what it gave before stays; the exit status is 1
then.

Example:
  symphony reload]],
  run = function(ctx)
    local found = require("symphony.modules").reload()
    if #found.failed > 0 then ctx.status = 1 end
    return found, { text = function()
      local lines = {}
      local plain = require("symphony.cli.render").plain
      local function line(...) lines[#lines + 1] = plain((...):format(select(2, ...))) end
      for _, c in ipairs(found.commands) do line("command %s  %s", c.name, c.file) end
      for _, s in ipairs(found.services) do
        line("service %s (%s)  %s", s.kind, table.concat(s.resources, ", "), s.file)
      end
      for _, f in ipairs(found.failed) do
        line("FAILED %s%s: %s%s", f.file, f.line and ":" .. f.line or "", f.message,
          f.kept and " (the earlier one stays)" or "")
      end
      return #lines > 0 and table.concat(lines, "\n") or "There is nothing in --lua-dir."
    end }
  end,
}
