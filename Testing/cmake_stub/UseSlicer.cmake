# As Slicer's Config does by the pointer size: an extension of Python alone must name languages too.
get_property(languages GLOBAL PROPERTY ENABLED_LANGUAGES)
if(NOT "CXX" IN_LIST languages)
  message(FATAL_ERROR "Slicer's checks need project() with its languages")
endif()

set(BUILD_TESTING ON)
enable_testing()

# slicerMacroBuildScriptedModule(NAME name SCRIPTS file... [RESOURCES file...] [WITH_GENERIC_TESTS])
# Copies each file, by its path as listed, into the build tree's one folder of scripted modules, and installs that folder.
function(slicerMacroBuildScriptedModule)
  cmake_parse_arguments(PARSE_ARGV 0 THE "WITH_GENERIC_TESTS" "NAME" "SCRIPTS;RESOURCES")
  if(THE_UNPARSED_ARGUMENTS OR NOT THE_NAME OR NOT THE_SCRIPTS)
    message(FATAL_ERROR "slicerMacroBuildScriptedModule: wrong arguments: ${ARGV}")
  endif()
  set(folder "${CMAKE_BINARY_DIR}/${Slicer_QTSCRIPTEDMODULES_LIB_DIR}")
  set(copies)
  foreach(file IN LISTS THE_SCRIPTS THE_RESOURCES)
    if(IS_ABSOLUTE "${file}" OR file MATCHES "\\.\\.")
      message(FATAL_ERROR "${THE_NAME}: ${file} would not land in the one folder")
    endif()
    if(NOT EXISTS "${CMAKE_CURRENT_SOURCE_DIR}/${file}" OR IS_DIRECTORY "${CMAKE_CURRENT_SOURCE_DIR}/${file}")
      message(FATAL_ERROR "${THE_NAME}: ${file} is listed and not there")
    endif()
    get_property(known GLOBAL PROPERTY LISTED_FILES)
    if(file IN_LIST known)
      message(FATAL_ERROR "${THE_NAME}: ${file} is listed twice")
    endif()
    set_property(GLOBAL APPEND PROPERTY LISTED_FILES "${file}")
    add_custom_command(
      OUTPUT "${folder}/${file}"
      DEPENDS "${CMAKE_CURRENT_SOURCE_DIR}/${file}"
      COMMAND "${CMAKE_COMMAND}" -E copy "${CMAKE_CURRENT_SOURCE_DIR}/${file}" "${folder}/${file}"
      )
    list(APPEND copies "${folder}/${file}")
  endforeach()
  add_custom_target(Copy${THE_NAME} ALL DEPENDS ${copies})
  install(DIRECTORY "${folder}/" DESTINATION "${Slicer_QTSCRIPTEDMODULES_LIB_DIR}")
  if(THE_WITH_GENERIC_TESTS)
    add_test(NAME py_nomainwindow_qSlicer${THE_NAME}ModuleGenericTest COMMAND "${CMAKE_COMMAND}" -E true)
  endif()
endfunction()

# slicer_add_python_unittest(SCRIPT file): in Slicer it runs the test class of that file.
function(slicer_add_python_unittest)
  cmake_parse_arguments(PARSE_ARGV 0 THE "" "SCRIPT" "")
  if(NOT EXISTS "${CMAKE_CURRENT_SOURCE_DIR}/${THE_SCRIPT}")
    message(FATAL_ERROR "slicer_add_python_unittest: ${THE_SCRIPT} is not there")
  endif()
  cmake_path(GET THE_SCRIPT STEM name)
  add_test(NAME py_${name} COMMAND "${CMAKE_COMMAND}" -E true)
endfunction()
